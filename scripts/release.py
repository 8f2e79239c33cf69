"""Give all packages a new version: ``python scripts/release.py 0.2.0``.

The version stands in each package and in its pins of the others, because each has to build from its own source
distribution. This writes all of these places. It also closes the unreleased section of CHANGELOG.md, and makes today's
list of public names the one that later changes are compared with. CONTRIBUTING.md has the steps of a release.
"""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = r"\d+\.\d+\.\d+"

# By pattern of files: what stands before a version, and after it.
PLACES = {
    "packages/*/pyproject.toml": (r'(?m:^version = "|vitcop-\w+(?:\[\w+\])?==)', '"'),
    "packages/*/src/*/__init__.py": (r'(?m:^__version__ = ")', '"'),
    "packages/*/src/*/_version.py": (r'(?m:^__version__ = ")', '"'),
    "CITATION.cff": (r"(?m:^version: )", "\n"),
}


def versions(root: Path) -> dict[str, list[str]]:
    """Return the versions that stand in each file, by its path."""
    found = {}
    for pattern, (before, after) in PLACES.items():
        for path in sorted(root.glob(pattern)):
            listed = re.findall(f"{before}({NUMBER}){after}", path.read_text(encoding="utf-8"))
            found[str(path.relative_to(root))] = listed
    return {path: listed for path, listed in found.items() if listed}


def write_versions(root: Path, version: str) -> None:
    """Write a version everywhere that :func:`versions` reads one."""
    for pattern, (before, after) in PLACES.items():
        for path in root.glob(pattern):
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(f"({before}){NUMBER}({after})", rf"\g<1>{version}\g<2>", text), encoding="utf-8")


def release(root: Path, version: str) -> None:
    """Make the repository at ``root`` that of a version.

    Raises:
        ValueError: It is no version, or not above the present one; or nothing is unreleased.
    """
    if not re.fullmatch(NUMBER, version):
        raise ValueError(f"version must be three numbers, got {version!r}")
    (present,) = {found for listed in versions(root).values() for found in listed}
    if [*map(int, version.split("."))] <= [*map(int, present.split("."))]:
        raise ValueError(f"version must be above {present}, got {version}")
    changelog = root / "CHANGELOG.md"
    before, heading, after = changelog.read_text(encoding="utf-8").partition("\n## Unreleased\n")
    if not heading or after.lstrip().startswith("## "):
        raise ValueError(f"{changelog.name} must have unreleased entries, got none")

    write_versions(root, version)
    changelog.write_text(f"{before}{heading}\n## {version} - {datetime.now(UTC):%Y-%m-%d}\n{after}", encoding="utf-8")
    names = (root / "tests/public_api/current.txt").read_text(encoding="utf-8")
    (root / "tests/public_api/released.txt").write_text(f"# vitcop {version}\n{names}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version")
    release(ROOT, parser.parse_args().version)
