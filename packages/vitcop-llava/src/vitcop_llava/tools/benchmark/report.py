"""Tables of a bench, as cells of text: for the terminal and for pages alike."""

from __future__ import annotations

from vitcop_llava.tools.benchmark.breakdown import PARTS
from vitcop_llava.tools.benchmark.result import BenchResult, BenchRow, Spread

HEADINGS = (
    "method",
    "tokens",
    "prefill",
    "over its oracle",
    "of unpruned",
    "MACs of unpruned",
    "per token",
    "peak memory",
    "cache",
)
SHORT_HEADINGS = ("method", "tokens", "prefill", "oracle", "time", "MACs", "token", "peak", "cache")
"""The same for a terminal; `CAPTION` says what they mean."""

CAPTION = (
    "prefill: median, and half of the range between the quartiles. oracle: prefill over that of the same model at the "
    "plan's lengths with nothing to decide, the median of the rounds' ratios. time, MACs: shares of the unpruned "
    "model's. token: time of one step of decoding. peak: most memory above what was in use. cache: after the prefill."
)

BUSY_HEADINGS = (
    "method",
    "tokens",
    "prefill",
    "GPU busy",
    "of the prefill",
    "of unpruned",
    "between modules",
    "per token",
    "of the token",
)
"""A table of its own, where a GPU ran the bench."""

BUSY_CAPTION = (
    "GPU busy: how long the GPU ran something in a prefill, in passes of their own under the profiler. Where that is "
    "much less than the prefill, the host's launches set the time, and a larger batch or model gains more. Between "
    "modules: outside tower, projector, decoder layers and head; choosing and moving tokens above all."
)

PART_HEADINGS = ("method", "tokens", *PARTS)


def cells(row: BenchRow) -> list[str]:
    """Return a row under `HEADINGS`; cells are empty where there is nothing to say."""
    found = [row.method, _tokens(row)]
    if row.prefill is None:
        return [*found, *[""] * (len(HEADINGS) - 2)]
    return [
        *found,
        _seconds(row.prefill),
        "" if row.over_oracle is None else f"{row.over_oracle.median:.3f}",
        "" if row.share_of_unpruned is None else f"{row.share_of_unpruned:.1%}",
        "" if row.share_of_macs is None else f"{row.share_of_macs:.1%}",
        "" if row.token is None else f"{1e3 * row.token.median:.3g} ms",
        "" if row.peak_bytes is None else as_bytes(row.peak_bytes),
        "" if row.cache_bytes is None else as_bytes(row.cache_bytes),
    ]


def busy_cells(row: BenchRow) -> list[str]:
    """Return a row under `BUSY_HEADINGS`; no cells where no GPU was measured."""
    if row.busy_prefill is None or row.prefill is None:
        return []
    token, step = row.busy_token, row.token
    return [
        row.method,
        _tokens(row),
        _seconds(row.prefill),
        as_seconds(row.busy_prefill),
        f"{row.busy_prefill / row.prefill.median:.1%}",
        "" if row.busy_share_of_unpruned is None else f"{row.busy_share_of_unpruned:.1%}",
        "" if row.busy_parts is None else f"{row.busy_parts['rest'] / row.busy_prefill:.1%}",
        "" if token is None else as_seconds(token),
        "" if token is None or step is None else f"{token / step.median:.1%}",
    ]


def part_cells(row: BenchRow) -> list[str]:
    """Return a row under `PART_HEADINGS`: seconds, and their share."""
    parts = row.parts or {}
    whole = sum(parts.values())
    shares = [f"{as_seconds(parts[name])} ({parts[name] / whole:.1%})" if name in parts else "" for name in PARTS]
    return [row.method, _tokens(row), *shares]


def remarks(result: BenchResult) -> list[str]:
    """Return why rows are empty."""
    return [row.remark for row in result.rows if row.missing]


def as_bytes(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _tokens(row: BenchRow) -> str:
    tokens = row.retained_tokens if row.average_tokens is None else row.average_tokens
    return f"{tokens:.4g}"


def _seconds(spread: Spread) -> str:
    """Return the median, and half of what lies between the quartiles."""
    scale, unit = (1, "s") if spread.median >= 1 else (1e3, "ms")
    return f"{scale * spread.median:.3g} ± {scale * (spread.upper - spread.lower) / 2:.2g} {unit}"


def as_seconds(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
