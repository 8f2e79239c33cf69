"""Where setup.py looks for CUDA, and that what it builds fits every Python."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import vitcop_cuda

SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The names of setup.py, without what it does; no CUDA is in the usual place, and no nvcc on the path."""
    defines = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef)
    body = [node for node in ast.parse(SETUP.read_text()).body if isinstance(node, defines)]
    names: dict[str, Any] = {}
    kept: list[ast.stmt] = [node for node in body if not ast.unparse(node).startswith("os.environ")]
    exec(compile(ast.Module(kept, []), str(SETUP), "exec"), names)
    names["USUAL_CUDA_HOME"] = str(tmp_path / "usual")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    return names


def toolkit(folder: Path) -> Path:
    for part in ("include/cuda_runtime_api.h", "bin/nvcc"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).touch()
    return folder


def test_cuda_is_found_behind_a_script_that_starts_nvcc(build: dict[str, Any], tmp_path: Path) -> None:
    assert build["cuda_home"]() is None
    real = toolkit(tmp_path / "cuda-13.0")
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho '#$ _SPACE_= ' >&2\necho '#$ TOP={real}/bin/..' >&2\n")
    script.chmod(0o755)
    assert build["cuda_home"]() == real


def test_cuda_is_where_the_caller_says_or_where_it_usually_is(
    build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = toolkit(tmp_path / "usual")
    assert build["cuda_home"]() == usual
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))  # without headers: it cannot be meant
    assert build["cuda_home"]() == usual
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "named")))
    assert build["cuda_home"]() == tmp_path / "named"


def test_compiled_module_is_for_every_python() -> None:
    assert vitcop_cuda.__file__ is not None
    assert list(Path(vitcop_cuda.__file__).parent.glob("_cpu.abi3.so"))
