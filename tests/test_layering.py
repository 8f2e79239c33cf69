"""Imports point one way, modules and functions stay small, and nothing in the repository is about one machine."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from vitcop_core.parsing import METHODS
from vitcop_core.presets import equal_budgets

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
MACHINE = re.compile(r"/(work|tmp|root|home|opt|Users)/|10\.\d+\.\d+\.\d+|192\.168\.")
CHECK_CONTRACTS = (
    "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
)

# Before the modules of vitcop_llava were put into folders there were 221. Rooms that came later are counted alone.
MOST_EDGES = 71
LATER = {"engine", "tools.batch", "tools.lmms"}
MOST_OF_A_LATER_ROOM = 9
MOST_AT_THE_TOP = 8


def room_of(module: str) -> str:
    """The folder or module right below vitcop_llava, or below its tools, that a module is in."""
    names = module.split(".")[1:]
    return ".".join(names[: 2 if names[:1] == ["tools"] else 1])


def test_contracts_between_modules_hold() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHECK_CONTRACTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_architecture_names_every_room() -> None:
    graph, page = grimp.build_graph("vitcop_llava", cache_dir=None), (ROOT / "docs/architecture.md").read_text()
    rooms = {room_of(module) for module in graph.modules} - {"", "tools"}
    assert {"families", "hooks", "prefix", "sequence", "weights", "tools.cli"} < rooms
    assert not {room for room in rooms if f"| `{room.replace('.', '/')}` |" not in page}


def test_rooms_import_few_others() -> None:
    graph = grimp.build_graph("vitcop_llava", cache_dir=None)
    pairs = {
        (room_of(importer), room_of(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    edges = {(importer, imported) for importer, imported in pairs if importer != imported}
    assert ("prefix", "pruner") in edges
    assert len([edge for edge in edges if LATER.isdisjoint(edge)]) <= MOST_EDGES
    for room in LATER:
        assert len([edge for edge in edges if edge[0] == room]) <= MOST_OF_A_LATER_ROOM


def test_top_level_of_vitcop_llava_is_small() -> None:
    top = sorted(path.name for path in (ROOT / "packages/vitcop-llava/src/vitcop_llava").glob("*.py"))
    assert "pruner.py" in top
    assert len(top) <= MOST_AT_THE_TOP


def test_no_line_outside_of_a_method_names_its_stages() -> None:
    words = {cut.stage for method in equal_budgets(128).values() for cut in method.plan(32, 576).decoder}
    assert len(words) >= 4
    for path in SOURCES:
        if {"methods", "ops", "vitcop_cuda"} & {*path.relative_to(ROOT).parts}:
            continue  # operators have names of their own, and two of them are those of stages
        tree = ast.walk(ast.parse(path.read_text()))
        assert not words & {node.value for node in tree if isinstance(node, ast.Constant)}, path


def test_what_prunes_knows_no_method() -> None:
    graph = grimp.build_graph("vitcop_llava", cache_dir=None)
    modules = {"vitcop_llava.pruner", "vitcop_llava.prefix"} | graph.find_upstream_modules("vitcop_llava.pruner")
    modules |= graph.find_descendants("vitcop_llava.prefix")
    assert len(modules) > 20
    for module in modules:
        place = ROOT / "packages/vitcop-llava/src" / module.replace(".", "/")
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not {name.name for name in node.names} & {*METHODS.values()}, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_names_no_machine(path: Path) -> None:
    assert not MACHINE.findall(path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_is_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if body:
            assert (body[-1].end_lineno or 0) - body[0].lineno < 60, node.name
        if "cli" not in path.parts:  # where parameters are the options of a command
            assert len(node.args.posonlyargs) + len(node.args.args) <= 7, node.name
