"""The trade-off as a picture: accuracy against visual tokens, a line for each method."""

from __future__ import annotations

from typing import IO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from vitcop_llava.tools.comparison.stored import Compared, Comparison, reached, unpruned

_MARKERS = "osD^vPX*<>"


def draw_tradeoff(compared: Comparison, target: IO[bytes], title: str = "") -> None:
    """Write a PNG.

    Args:
        compared: The ``comparison`` of a result.
        target: Where the PNG goes.
        title: Above the picture.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.add_subplot()
    rows, whole = reached(compared), unpruned(compared)
    pruned = [row for row in rows if row is not whole]
    highest, lowest = max(map(_share, rows)), min((_interval(row) or (_share(row),))[0] for row in rows)
    for number, label in enumerate(dict.fromkeys(row["label"] for row in pruned)):
        _draw_line(axes, label, [row for row in pruned if row["label"] == label], number)
    _draw_unpruned(axes, whole)
    axes.set_xscale("log", base=2)
    axes.set_xticks(_ticks([row["tokens"] for row in pruned]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:g}"))
    axes.set_xlabel(f"visual tokens, average over layers (of {whole['tokens']:.4g})")
    axes.set_ylabel("right answers, %")
    axes.set_ylim(max(0.0, lowest - 4), min(101.0, highest + 4))
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(alpha=0.3)
    # Below the axes: lines may lie anywhere inside them.
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    figure.savefig(target, format="png", dpi=120)


def _ticks(tokens: list[float]) -> list[int]:
    """Return one tick where several methods come near to the same budget: at the largest."""
    ticks: list[int] = []
    for tick in sorted({round(value) for value in tokens}, reverse=True):
        if not ticks or tick < 0.87 * ticks[-1]:
            ticks.append(tick)
    return ticks


def _draw_line(axes: Axes, label: str, rows: list[Compared], number: int) -> None:
    rows = sorted(rows, key=lambda row: row["tokens"])
    shares = [_share(row) for row in rows]
    bars = None
    intervals = [found for row in rows if (found := _interval(row)) is not None]
    if len(intervals) == len(rows):
        below = [share - low for share, (low, _) in zip(shares, intervals, strict=True)]
        above = [high - share for share, (_, high) in zip(shares, intervals, strict=True)]
        bars = [below, above]
    axes.errorbar(
        [row["tokens"] for row in rows],
        shares,
        yerr=bars,
        label=label,
        color=f"C{number % 10}",
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        linewidth=2.0 if label.startswith("ViTCoP") else 1.2,
        linestyle="--" if "," in label else "-",
        capsize=2.5,
        elinewidth=1.0,
    )


def _draw_unpruned(axes: Axes, row: Compared) -> None:
    axes.axhline(_share(row), color="gray", linestyle=":", label="unpruned")
    if (interval := _interval(row)) is not None:
        axes.axhspan(*interval, color="gray", alpha=0.15, linewidth=0)


def _share(row: Compared) -> float:
    return 100 * row["accuracy"]["value"]


def _interval(row: Compared) -> tuple[float, float] | None:
    """Return the interval of the accuracy in per cent, where there is one."""
    low, high = row["accuracy"]["low"], row["accuracy"]["high"]
    return None if low is None or high is None else (100 * low, 100 * high)
