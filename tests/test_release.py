"""All packages have one version, ``scripts/release.py`` writes it everywhere, and both ends of what they need run."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import release
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
COPIED = (*release.PLACES, "CHANGELOG.md", "tests/public_api/*.txt")


def requirements(package: Path) -> list[Requirement]:
    """What the metadata of a package asks for, with its extras."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(text) for listed in (project["dependencies"], *extras) for text in listed]


def pins(text: str) -> dict[str, str]:
    """The versions that lines or quoted words fix, by name."""
    return dict(re.findall(r'^"?([\w-]+)==([\w.]+)', re.sub(r'"', '\n"', text), flags=re.MULTILINE))


def end(which: str) -> dict[str, str]:
    """The versions that the session of that name installs."""
    lines = re.findall(rf"^{which.upper()}_TORCH, .* = (.+)$", (ROOT / "noxfile.py").read_text(), flags=re.MULTILINE)
    return pins("".join(lines))


PRESENT = pins((ROOT / "constraints.txt").read_text())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that a release changes, in a folder of their own, with an unreleased entry."""
    for path in [path for pattern in COPIED for path in ROOT.glob(pattern)]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    changelog = tmp_path / "CHANGELOG.md"
    heading = "\n## Unreleased\n"
    text = changelog.read_text()
    changelog.write_text(text.replace(heading, f"{heading}\n### Added\n\n- An entry.\n", 1))
    return tmp_path


def test_all_places_have_one_version() -> None:
    found = release.versions(ROOT)
    assert len({version for listed in found.values() for version in listed}) == 1
    assert "CITATION.cff" in found
    for package in PACKAGES:
        assert any(path.startswith(f"{package.relative_to(ROOT)}/") for path in found), package


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_packages_need_each_other_in_the_same_version(package: Path) -> None:
    (version,) = {version for listed in release.versions(ROOT).values() for version in listed}
    ours = [each for each in requirements(package) if each.name.startswith("vitcop") and each.name != package.name]
    assert ours or package.name == "vitcop-core"
    assert {str(each.specifier) for each in ours} <= {f"=={version}"}


def test_release_writes_a_version_everywhere(copy: Path) -> None:
    before = release.versions(copy)
    names = (copy / "tests/public_api/current.txt").read_text()
    release.release(copy, "98.7.6")
    after = release.versions(copy)
    assert {path: len(listed) for path, listed in after.items()} == {path: len(each) for path, each in before.items()}
    assert {version for listed in after.values() for version in listed} == {"98.7.6"}
    assert re.search(r"\n## Unreleased\n\n## 98\.7\.6 - \d{4}-\d\d-\d\d\n\n### ", (copy / "CHANGELOG.md").read_text())
    assert (copy / "tests/public_api/released.txt").read_text() == f"# vitcop 98.7.6\n{names}"


def test_release_refuses_what_is_no_step_forward(copy: Path) -> None:
    for version in ("0.0.9", "98.7", "v98.7.6"):
        with pytest.raises(ValueError, match="version must be"):
            release.release(copy, version)
    release.release(copy, "98.7.6")
    with pytest.raises(ValueError, match=r"CHANGELOG\.md must have unreleased entries"):
        release.release(copy, "98.7.7")


def test_both_ends_of_a_range_are_run() -> None:
    """``nox -s oldest`` runs the lower bounds, ``nox -s newest`` what is above the versions of ``nox -s tests``."""
    oldest, newest = end("oldest"), end("newest")
    assert {"torch", "transformers", "av"} == {*oldest} == {*newest}
    ranges = {each.name: each.specifier for package in PACKAGES for each in requirements(package) if each.specifier}
    lowest = {name: end.version for name, ends in ranges.items() for end in ends if end.operator == ">="}
    assert {*oldest} < {*lowest}
    for name, version in lowest.items():
        assert Version(oldest.get(name, PRESENT[name])) == Version(version)
        assert Version(version) <= Version(PRESENT[name]) <= Version(newest.get(name, PRESENT[name]))
        assert newest.get(name, PRESENT[name]) in ranges[name]
