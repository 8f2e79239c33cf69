"""Lays transformers' tests out around the transformers that is installed."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

FAMILIES = ("llava", "llava_next", "llava_next_video")
"""The folders of the tests, under tests/models."""


def test_files(root: Path) -> list[str]:
    """The files that test the models of the families, relative to ``root``.

    Raises:
        FileNotFoundError: One is missing.
    """
    found = [f"tests/models/{family}/test_modeling_{family}.py" for family in FAMILIES]
    absent = [name for name in found if not (root / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{root} must have transformers' tests in it; it has no {', '.join(absent)}")
    return found


def lay_out(folder: Path, target: Path) -> None:
    """Copies what the tests need from ``folder``, a checkout of transformers or a part of one, to ``target``.

    The tests read sources beside them, in ``src/transformers``, which here are the installed ones.

    Raises:
        FileNotFoundError: ``folder`` has no tests of the families.
    """
    test_files(folder)
    models = folder / "tests" / "models"

    def others(where: str, names: list[str]) -> set[str]:
        inside = Path(where) == models
        return {name for name in names if name == "__pycache__"} | {
            name for name in names if inside and name not in FAMILIES and (models / name).is_dir()
        }

    for name in ("tests", "utils"):
        if (folder / name).is_dir():
            shutil.copytree(folder / name, target / name, ignore=others)
    (target / "src").mkdir()
    spec = find_spec("transformers")
    assert spec is not None  # vitcop-llava needs it
    assert spec.origin is not None
    (target / "src" / "transformers").symlink_to(Path(spec.origin).parent)
    # Keeps settings from elsewhere away, and thousands of subtests out of the output.
    (target / "pytest.ini").write_text("[pytest]\nverbosity_subtests = 0\n")
