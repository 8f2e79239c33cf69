"""What README and docs publish is what is stored."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "docs" / "benchmarks").rglob("*.json"))
COMPILED = ROOT / "docs" / "benchmarks" / "ptxas.json"


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """docs/benchmarks/render.py, which is a script and no part of a package."""
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "benchmarks" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks/index.md", "docs/kernels.md"])
def test_published_tables_equal_stored_results(render: ModuleType, page: str) -> None:
    text = (ROOT / page).read_text()
    assert render.rendered(text) == text
    assert ("| `Assign` |" if page == "docs/kernels.md" else "| unpruned | 1 | 144 |") in text


def test_no_compiled_kernel_spills() -> None:
    stored = json.loads(COMPILED.read_text())
    assert {"sm_80", "sm_90"} < {entry["architecture"] for entry in stored["kernels"]}
    assert not [entry for entry in stored["kernels"] if entry["spill_stores"] or entry["spill_loads"]]


@pytest.mark.parametrize("result", [path for path in RESULTS if path != COMPILED], ids=lambda path: path.name)
def test_stored_result_names_command_machine_and_versions(result: Path) -> None:
    stored = json.loads(result.read_text())
    package = "vitcop-cuda" if stored["command"].startswith("python -m vitcop_cuda.bench") else "vitcop-llava"
    assert stored["command"].startswith((f"python -m {package.replace('-', '_')}.", "vitcop "))
    assert stored["environment"]["processor"]
    assert {"torch", package} <= set(stored["environment"]["packages"])


def test_demo_model_answers_as_well_as_was_asked_for() -> None:
    stored = json.loads((ROOT / "docs" / "benchmarks" / "demo-accuracy.json").read_text())
    assert stored["scenes"] == 2000
    whole = next(score for score in stored["scores"] if score["variant"] == "unpruned")
    shares = {kind: whole["right"][kind] / whole["questions"][kind] for kind in whole["questions"]}
    assert min(shares.values()) >= 0.90
    assert sum(whole["right"].values()) / sum(whole["questions"].values()) >= 0.95
