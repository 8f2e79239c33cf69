"""What is public stays as it was, unless the stored list and the changelog say otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import public_api
import pytest
import release
from public_api import CHANGELOG, CURRENT, RELEASED, ROOT, Api, Listing, commands, parse, render, unnamed, unreleased

REMEDY = "run python scripts/public_api.py, and name what changed in CHANGELOG.md"

WAS: Api = {
    "core.Plan": ["", "keep: int"],
    "core.Plan.macs": [" -> int", "text: int"],
    "core.solve": [" -> Plan", "budget: int", "*", "layers: int = 2"],
    "vitcop ask": ["", "IMAGE", "--retain N"],
    "python -m core.bench": ["", "--rounds: int = 5"],
}


@pytest.fixture(scope="module")
def api() -> Api:
    return Listing(ROOT).api | commands()


def test_public_names_are_the_stored_ones(api: Api) -> None:
    stored = parse(CURRENT.read_text())
    differing = [name for name in {*api} | {*stored} if api.get(name) != stored.get(name)]
    assert not differing, f"{sorted(differing)}: {REMEDY}"
    assert render(api) == CURRENT.read_text(), REMEDY


def test_changelog_names_what_changed_since_the_release(api: Api) -> None:
    missing = unnamed(parse(RELEASED.read_text()), api, unreleased(CHANGELOG.read_text()))
    assert not missing, f"CHANGELOG.md must name as code, in its unreleased section: {missing}"


def test_names_of_the_release_are_those_of_the_version() -> None:
    (version,) = {found for listed in release.versions(ROOT).values() for found in listed}
    assert RELEASED.read_text().partition("\n")[0] == f"# vitcop {version}"
    assert re.findall(r"^## (\d\S+)", CHANGELOG.read_text(), flags=re.MULTILINE)[0] == version


def test_everything_that_packages_export_is_listed(api: Api) -> None:
    for package in public_api.PACKAGES:
        module = __import__(package)
        assert {f"{package}.{name}" for name in module.__all__} <= {*api}


@pytest.mark.parametrize(
    ("name", "now", "words"),
    [
        ("core.Plan", None, ["core.Plan: Plan"]),
        ("core.Plan", ["", "keep: int", "layer: int = 0"], ["core.Plan: Plan", "core.Plan: layer"]),
        ("core.Plan.macs", None, ["core.Plan.macs: macs"]),
        ("core.Plan.kv", [" -> int"], ["core.Plan.kv: kv"]),
        (
            "core.solve",
            [" -> Plan", "budget: float", "*", "layers: int = 2"],
            ["core.solve: budget", "core.solve: solve"],
        ),
        ("core.solve", [" -> Plan", "budget: int", "layers: int = 2"], ["core.solve: solve"]),
        ("core.solve", [" -> Ratios", "budget: int", "*", "layers: int = 2"], ["core.solve: solve"]),
        ("vitcop ask", ["", "IMAGE", "--retain, -r N"], ["vitcop ask: --retain", "vitcop ask: ask"]),
        ("vitcop show", ["", "IMAGE"], ["vitcop show: show"]),
        (
            "python -m core.bench",
            ["", "--rounds: int = 9"],
            ["python -m core.bench: --rounds", "python -m core.bench: bench"],
        ),
    ],
)
def test_change_has_to_be_named(name: str, now: list[str] | None, words: list[str]) -> None:
    changed = {each: lines for each, lines in {**WAS, name: now}.items() if lines is not None}
    changed = {each: lines for each, lines in changed.items() if now is not None or not each.startswith(f"{name}.")}
    assert unnamed(WAS, changed, "- nothing of it\n") == words
    assert not unnamed(WAS, changed, "- vitcop: " + " and ".join(f"`{word.partition(': ')[2]}`" for word in words))


def test_list_is_read_as_it_was_written() -> None:
    assert parse("# vitcop 1.2.3\n" + render(WAS)) == WAS


def test_only_the_unreleased_section_counts() -> None:
    text = Path(CHANGELOG).read_text()
    assert "## " not in re.sub(r"^###.*", "", unreleased(text), flags=re.MULTILINE)
    assert unreleased("# Changelog\n\n## Unreleased\n\n- new\n\n## 0.1.0\n\n- old\n").split() == ["-", "new"]
