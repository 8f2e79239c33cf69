"""The time of prefills as a picture."""

from __future__ import annotations

from typing import IO, Any

from matplotlib.figure import Figure

from vitcop_llava.tools.benchmark.result import BenchRow

_COLORS = {
    name: f"C{number}"
    for number, name in enumerate(("ViTCoP", "VisPruner", "DivPrune", "VisionZip", "SparseVLM", "PyramidDrop", "FastV"))
}
"""Of the methods, as in the picture of the trade-off."""


def draw_prefill(stored: dict[str, Any], target: IO[bytes]) -> None:
    """Write a PNG: for each budget a bar for each method, and a line for the unpruned model.

    Args:
        stored: A result of ``vitcop bench``, as it is in its file.
        target: Where the PNG goes.

    Raises:
        OSError: The file cannot be written.
    """
    rows = [BenchRow.load(row) for row in stored["rows"]]
    whole, pruned = rows[0], rows[1:]
    assert whole.prefill is not None
    budgets = [*dict.fromkeys(row.retained_tokens for row in pruned)]
    methods = [*dict.fromkeys(row.method for row in pruned)]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    thickness = 0.8 / len(methods)
    for number, method in enumerate(methods):
        spreads = {row.retained_tokens: row.prefill for row in pruned if row.method == method and row.prefill}
        places = [budgets.index(budget) + (number - (len(methods) - 1) / 2) * thickness for budget in spreads]
        axes.bar(
            places,
            [spread.median for spread in spreads.values()],
            0.92 * thickness,
            yerr=[
                [spread.median - spread.lower for spread in spreads.values()],
                [spread.upper - spread.median for spread in spreads.values()],
            ],
            label=method,
            color=_COLORS[method],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "gray"},
        )
    axes.axhline(whole.prefill.median, color="gray", linestyle=":")
    axes.annotate(
        f"unpruned, {stored['visual_tokens']} tokens: {whole.prefill.median:.1f} s",
        (0.99, whole.prefill.median),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set_xticks(range(len(budgets)), [f"{budget:g} tokens" for budget in budgets])
    axes.set_ylabel("time to the first token, s")
    axes.set_ylim(0, 1.06 * whole.prefill.median)
    title = f"{stored['shape']}, random weights, {stored['environment']['cores']} CPU cores"
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize="small", loc="outside lower center", ncols=len(methods))
    figure.savefig(target, format="png", dpi=150)
