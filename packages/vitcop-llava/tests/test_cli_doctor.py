"""``vitcop doctor``: one finding for everything that can be there or not, and a reason for what is not."""

import hashlib
import json
import sys
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.model.loading import DEMO_FOLDER, WEIGHTS


def examine() -> dict[str, Any]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_doctor_lists_versions_devices_backends_and_kernels() -> None:
    content = examine()
    assert set(content) == {"versions", "devices", "attention", "kernels", "images", "video", "demo_model"}
    assert content["versions"]["torch"] == {"found": True, "detail": version("torch")}
    assert {"eager", "sdpa", "flash_attention_2"} == set(content["attention"])
    assert content["devices"]["cpu"]["found"]
    assert content["kernels"]["reference"]["found"]
    assert {"reference", "cpu", "cuda"} == set(content["kernels"])


def test_doctor_gives_a_reason_for_whatever_is_missing() -> None:
    findings = [finding for section in examine().values() for finding in section.values()]
    assert all(finding["detail"] for finding in findings)


def test_doctor_knows_the_demo_weights() -> None:
    weights, finding = DEMO_FOLDER / WEIGHTS, examine()["demo_model"]["weights"]
    assert finding["found"] == weights.is_file()
    if weights.is_file():
        assert finding["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert finding["bytes"] == weights.stat().st_size
    else:
        assert str(weights) in finding["detail"]


def test_doctor_says_why_an_installed_package_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("vitcop_llava.tools.cli.doctor")  # the package has the function by that name
    monkeypatch.setattr(module, "_version", lambda package: "1.2.3")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    finding = examine()["images"]["torchvision"]
    assert not finding["found"]
    assert "ImportError" in finding["detail"] or "ModuleNotFoundError" in finding["detail"]


def test_doctor_says_what_kernels_were_built_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("vitcop_llava.tools.cli.doctor")
    built = SimpleNamespace(torch="2.13.0", compiler="C++ 12", no_cpu_because="", no_cuda_because="no nvcc was found")
    monkeypatch.setattr(module, "_version", lambda package: "1.2.3")
    monkeypatch.setitem(sys.modules, "vitcop_cuda", SimpleNamespace(build_information=lambda: built))
    kernels = examine()["kernels"]
    assert kernels["cpu"] == {"found": True, "detail": "built with torch 2.13.0 by C++ 12"}
    assert kernels["cuda"] == {"found": False, "detail": "no nvcc was found"}


def test_doctor_prints_a_table() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    for words in ("versions", "transformers", "flash_attention_2", "kernels", "torchvision", "demo model"):
        assert words in result.stdout
