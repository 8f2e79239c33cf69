"""A bench in brief: time to the first token, cache and multiply-accumulates, as three lines and as bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitcop_llava.tools.benchmark.report import as_bytes, as_seconds
from vitcop_llava.tools.benchmark.result import BenchResult, BenchRow

WIDTH = 40
"""Characters of the longest bar."""


@dataclass(frozen=True)
class Quantity:
    """Something that a prefill costs.

    Attributes:
        title: What it is, for people.
        of: Its value in a row; None where it was not measured.
        shown: The value with its unit.
    """

    title: str
    of: Callable[[BenchRow], float | None]
    shown: Callable[[float], str]


QUANTITIES = (
    Quantity("time to the first token", lambda row: None if row.prefill is None else row.prefill.median, as_seconds),
    Quantity("key-value cache", lambda row: row.cache_bytes, lambda count: as_bytes(int(count))),
    Quantity("MACs of the decoder layers", lambda row: row.macs, lambda count: f"{count / 1e9:.3g} G"),
)


def name(row: BenchRow) -> str:
    """Return a row's method and its visual tokens, averaged over the layers."""
    return f"{row.method}, {row.average_tokens:.4g} tokens"


def measured(result: BenchResult) -> list[BenchRow]:
    """Return the rows that have measurements, the unpruned model first."""
    return [row for row in result.rows if row.prefill is not None]


def lines(result: BenchResult) -> list[list[str]]:
    """Return three rows of cells: what is measured, and its value in each of `measured`, with what pruning saves."""
    unpruned = result.rows[0]
    return [[quantity.title, *(_cell(quantity, row, unpruned) for row in measured(result))] for quantity in QUANTITIES]


def _cell(quantity: Quantity, row: BenchRow, unpruned: BenchRow) -> str:
    value, most = quantity.of(row), quantity.of(unpruned)
    if value is None:
        return ""
    return quantity.shown(value) + ("" if row is unpruned or most is None else f" ({value / most:.1%})")


def bars(result: BenchResult, block: str = "\N{FULL BLOCK}") -> list[str]:
    """Return lines of text: under each quantity's title a bar for each of `measured`, the longest for the largest.

    Args:
        result: What was measured.
        block: The character that bars are made of.
    """
    rows, found = measured(result), list[str]()
    width = max((len(name(row)) for row in rows), default=0)
    for quantity in QUANTITIES:
        values = [(row, value) for row in rows if (value := quantity.of(row)) is not None]
        most = max((value for _, value in values), default=0)
        found.append(quantity.title)
        for row, value in values:
            bar = block * max(1, round(WIDTH * value / most))
            found.append(f"  {name(row):<{width}}  {bar} {quantity.shown(value)}")
    return found
