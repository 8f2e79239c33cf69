"""Imports point one way, and nothing in the repository is about one machine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "vitcop-core": {"vitcop_core"},
    "vitcop-cuda": {"vitcop_cuda", "vitcop_core"},
    "vitcop-llava": {"vitcop_llava", "vitcop_core", "vitcop_cuda"},
    "vitcop-video": {"vitcop_video", "vitcop_llava", "vitcop_core"},
}
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
MACHINE = re.compile(r"/(work|tmp|root|home|opt|Users)/|helper-\d|issue \d|\bCEO\b|10\.\d+\.\d+\.\d+|192\.168\.")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / "packages" / package / "src").rglob("*.py"):
        own = {name.partition(".")[0] for name in imported(path)}
        assert {name for name in own if name.startswith("vitcop")} <= MAY_IMPORT[package], path


def test_core_needs_torch_alone() -> None:
    for path in (ROOT / "packages/vitcop-core/src").rglob("*.py"):
        assert not {"transformers", "numpy", "PIL", "triton"} & {n.partition(".")[0] for n in imported(path)}, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_names_no_machine(path: Path) -> None:
    assert not MACHINE.findall(path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_is_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                assert (body[-1].end_lineno or 0) - body[0].lineno < 50, node.name
