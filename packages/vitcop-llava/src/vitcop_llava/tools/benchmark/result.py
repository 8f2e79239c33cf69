"""What a bench found, as plain data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Spread:
    """Repeated measurements.

    Attributes:
        median: Of all.
        lower, upper: Quartiles.
        values: In the order of the rounds.
    """

    median: float
    lower: float
    upper: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of one measurement or more."""
        # Quartiles need two; of a single one they are itself.
        lower, median, upper = statistics.quantiles([*values] * (2 if len(values) == 1 else 1), method="inclusive")
        return cls(median, lower, upper, tuple(values))


@dataclass(frozen=True)
class BenchRow:
    """One method at one budget, or the unpruned model.

    Attributes:
        method: By the name that papers use, or ``"unpruned"``.
        retained_tokens: The budget of each image or clip; None for the unpruned model.
        missing: Why there are no measurements; None where there are.
        average_tokens: What the plan makes of the budget, for each row of the batch.
        tokens_per_layer: Visual tokens at the input of each decoder layer.
        prefill: Seconds; see `vitcop_llava.tools.model.measuring.Measured`, as for those that follow.
        token: Seconds of a step that generates a token for each row; None where none was generated after the first.
        oracle: Seconds of the oracle, in the same rounds; None for the unpruned model.
        over_oracle: Prefill over oracle, paired by rounds: the two run next to each other, so that what slows the
            machine for a while slows both, and each ratio is of one moment. Its median is the one to quote.
        over_oracle_of_medians: Ratio of the two medians, for comparison.
        share_of_unpruned: Ratio of the prefill's median to that of the unpruned model.
        macs: Multiply-accumulates of the language model's layers in a prefill, for each row of the batch.
        share_of_macs: Ratio of them to those of the unpruned model.
        peak_bytes: Median of the peaks.
        cache_bytes: What the cache held after the prefill.
        planned_cache_bytes: What it should hold by the plan.
        busy_prefill: Seconds in which a GPU ran something in a prefill, the median of own passes; None on a CPU.
        busy_token: Likewise of a step of decoding.
        busy_parts: Of ``busy_prefill``, the seconds of each of `vitcop_llava.tools.benchmark.breakdown.PARTS`.
        busy_share_of_unpruned: Ratio of ``busy_prefill`` to that of the unpruned model.
        parts: Seconds of each of `vitcop_llava.tools.benchmark.breakdown.PARTS`, medians of passes of their own.
    """

    method: str
    retained_tokens: float | None = None
    missing: str | None = None
    average_tokens: float | None = None
    tokens_per_layer: tuple[int, ...] | None = None
    prefill: Spread | None = None
    token: Spread | None = None
    oracle: Spread | None = None
    over_oracle: Spread | None = None
    over_oracle_of_medians: float | None = None
    share_of_unpruned: float | None = None
    macs: int | None = None
    share_of_macs: float | None = None
    peak_bytes: int | None = None
    cache_bytes: int | None = None
    planned_cache_bytes: int | None = None
    busy_prefill: float | None = None
    busy_token: float | None = None
    busy_parts: dict[str, float] | None = None
    busy_share_of_unpruned: float | None = None
    parts: dict[str, float] | None = None

    @property
    def remark(self) -> str:
        """Why there are no measurements, for people; empty where there are."""
        return "" if self.missing is None else f"{self.method} at {self.retained_tokens:g}: {self.missing}"

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Self:
        """Return a row from what ``dataclasses.asdict`` made of it, also by way of JSON."""
        spreads = {name: stored[name] for name in ("prefill", "token", "oracle", "over_oracle")}
        return cls(**stored | {name: plain and Spread(**plain) for name, plain in spreads.items()})


@dataclass(frozen=True)
class BenchResult:
    """One run.

    Attributes:
        visual_tokens: Of each row of the batch, newlines of tiles apart.
        newline_tokens: Likewise; every method drops them.
        text_tokens: Likewise.
        rows: The unpruned model first.
    """

    visual_tokens: int
    newline_tokens: int
    text_tokens: int
    rows: tuple[BenchRow, ...]
