"""The shape of a stored comparison, as `json` reads it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from vitcop_core.environment import Environment


class StoredEstimate(TypedDict):
    """A share with its interval; see `vitcop_llava.tools.comparison.statistics.Estimate`."""

    value: float
    low: float | None
    high: float | None


class StoredVariant(TypedDict):
    """What was wanted."""

    name: str
    label: str
    retain: str
    settings: str | None


class Unreachable(StoredVariant):
    """A variant that could not be asked, why, and how many tokens it could keep."""

    problem: str
    nearest_tokens: float | None


class Compared(StoredVariant):
    """A variant that was asked: its mean cost, right answers (by kind with the questions), and estimates."""

    problem: None
    nearest_tokens: None
    tokens: float
    macs: float
    kv_bytes: float
    tokens_per_layer: Sequence[int] | None
    right: int
    kinds: dict[str, list[int]]
    accuracy: StoredEstimate
    difference: StoredEstimate
    kept: StoredEstimate | None


class StoredFault(TypedDict):
    """A line of the question file that could not be asked, and why."""

    number: int
    error: str


class Asking(TypedDict):
    """Which model was asked, and how."""

    model: dict[str, Any]
    batch_size: int
    max_new_tokens: int


class Comparison(Asking):
    """What another run repeats to the digit. Results from before clips could be asked about have no ``clips``."""

    questions: int
    images: int
    clips: NotRequired[int]
    source: str
    digest: str
    faults: list[StoredFault]
    matching: str
    confidence: float
    resamples: int
    seed: int
    variants: list[Compared | Unreachable]


class StoredTimes(TypedDict):
    """Of one run, or medians; see `vitcop_llava.tools.model.measuring.Measured`."""

    prefill_seconds: float | None
    token_seconds: float | None
    peak_bytes: float | None
    cache_bytes: float | None


class TimedVariant(StoredTimes):
    """Medians, and what they are of."""

    runs: list[StoredTimes]


class StoredTiming(TypedDict):
    """What depends on the clock, by variant."""

    new_tokens: int
    variants: dict[str, TimedVariant]


class Measurements(TypedDict):
    """Both parts; ``timing`` is None where nothing was timed."""

    comparison: Comparison
    timing: StoredTiming | None


class StoredComparison(Measurements):
    """The whole file."""

    command: str
    environment: Environment


def unpruned(compared: Comparison) -> Compared:
    """Return the variant that all others are compared with."""
    return next(row for row in reached(compared) if row["settings"] is None)


def reached(compared: Comparison) -> list[Compared]:
    """Return the variants that could be asked."""
    return [row for row in compared["variants"] if row["problem"] is None]
