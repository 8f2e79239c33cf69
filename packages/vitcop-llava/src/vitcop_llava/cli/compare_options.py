"""The budgets of ``vitcop compare``."""

from __future__ import annotations

from collections.abc import Sequence

from vitcop_llava.cli.errors import UserError
from vitcop_llava.cli.options import Budget, parse_budget

DEFAULT_BUDGETS = ("1/3", "2/9", "1/9", "1/18")
PRESET_BUDGETS: dict[str, tuple[str, ...]] = {"table-4": ("1/9",), "table-7": ("1/9",)}
"""The paper's own, 64 of 576 tokens."""


def parse_budgets(given: Sequence[str], preset: str) -> dict[str, Budget]:
    """The budgets of repeated ``--retain``, each of which may be a list with commas, by what was written.

    Raises:
        UserError: for one that is none, or for any with a preset that brings its own.
    """
    if given and preset == "published":
        raise UserError(f"--retain: the preset published has its own budgets; got {given[0]!r}")
    words = [word.strip() for text in given for word in text.split(",")]
    return {word: parse_budget(word) for word in words or PRESET_BUDGETS.get(preset, DEFAULT_BUDGETS)}
