"""Compares a run of the tests with the unpruned one, and with what is known to differ. No torch here."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

_RANKS = ("passed", "xpassed", "skipped", "xfailed", "failed")
PASSED = ("passed", "xpassed")
MODES = ("keep-all", "pruned")
"""The modes that are compared with the unpruned run."""


@dataclass
class RunResult:
    """What one run of the tests came to.

    Attributes:
        outcomes: By test: ``passed``, ``failed`` (errors too), ``skipped``, ``xfailed`` or ``xpassed``.
        messages: Of the tests that failed, the first error's.
        wrapped: How many models were pruned, by class.
        left_alone: How many were not, by class and reason.
        cuts: How often each kind of cut ran, and in how many tests any did.
    """

    outcomes: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    wrapped: dict[str, int] = field(default_factory=dict)
    left_alone: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Reads what the plugin wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Expected:
    """Tests that are known to differ.

    Attributes:
        tests: Patterns of test ids, with ``*`` for anything.
        modes: The modes that they differ in.
        reason: Why, in plain English.
    """

    tests: tuple[str, ...]
    modes: tuple[str, ...]
    reason: str

    def covers(self, test: str, mode: str) -> bool:
        """Whether the test is known to differ in this mode."""
        return mode in self.modes and any(fnmatchcase(test, pattern) for pattern in self.tests)


@dataclass(frozen=True)
class Comparison:
    """A mode beside the unpruned run.

    Attributes:
        compared: How many tests pass unpruned.
        expected: Those that differ, and are known to.
        unexpected: Those that differ, and are not known to.
        stale: Those that are said to differ and do not.
        missing: Those that pass unpruned and did not run in this mode.
    """

    compared: int
    expected: tuple[str, ...]
    unexpected: tuple[str, ...]
    stale: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_fine(self) -> bool:
        """Whether everything is as expected."""
        return self.compared > 0 and not (self.unexpected or self.stale or self.missing)


def worse(known: str | None, other: str) -> str:
    """The graver of two outcomes: what a test comes to whose parts have one each."""
    return other if known is None else max(known, other, key=_RANKS.index)


def read_expected(path: Path) -> list[Expected]:
    """Reads the file of known differences.

    Raises:
        ValueError: An entry has no test, no reason, or a mode that there is none of.
    """
    found = []
    for number, entry in enumerate(tomllib.loads(path.read_text())["difference"], start=1):
        tests, modes, reason = tuple(entry["tests"]), tuple(entry["modes"]), entry["reason"].strip()
        if not tests or not modes or not set(modes) <= set(MODES) or not reason:
            raise ValueError(f"{path}: entry {number} needs tests, modes out of {', '.join(MODES)}, and a reason")
        found.append(Expected(tests, modes, reason))
    return found


def compare(unpruned: RunResult, other: RunResult, mode: str, known: list[Expected]) -> Comparison:
    """Compares the tests that pass unpruned: a test that then is skipped, or fails as it may, differs too."""
    tests = sorted(test for test, outcome in unpruned.outcomes.items() if outcome in PASSED)
    missing = [test for test in tests if test not in other.outcomes]
    differ = [test for test in tests if test in other.outcomes and other.outcomes[test] not in PASSED]
    listed = {test for test in tests if any(entry.covers(test, mode) for entry in known)}
    return Comparison(
        compared=len(tests),
        expected=tuple(test for test in differ if test in listed),
        unexpected=tuple(test for test in differ if test not in listed),
        stale=tuple(test for test in tests if test in listed and other.outcomes.get(test) in PASSED),
        missing=tuple(missing),
    )
