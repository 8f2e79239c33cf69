"""The methods behind a table's rows, for the paper's model or another."""

from __future__ import annotations

from collections.abc import Mapping

from vitcop_core import Method, presets
from vitcop_llava.tools.lmms.published import LLAVA_15_7B, TABLE_1, TABLE_4, TABLE_7, PaperTable

_PAPER_LAYERS = 32
_AUTHORS: Mapping[str, Mapping[int, Method]] = {
    "FastV": presets.FASTV,
    "PyramidDrop": presets.PYRAMIDDROP,
    "SparseVLM": presets.SPARSEVLM,
    "VisionZip": presets.VISIONZIP,
}


def methods_of(table: PaperTable, num_layers: int, visual_tokens: int) -> dict[str, Method | None]:
    """Return the method of each row by the row's name; None for the unpruned model.

    Args:
        table: Of the paper.
        num_layers: Of the language model. Another number than the paper's moves cut layers in proportion.
        visual_tokens: Of an image or clip, at most. Where they are not those of the table's model, budgets are the same
            share of them.

    Raises:
        ValueError: A budget or a cut layer is out of range.
    """
    budgets = {
        row.budget: _scaled(row.budget, visual_tokens, table.checkpoint.tokens) for row in table.rows if row.budget
    }
    found: dict[str, Method | None] = {row.name: None for row in table.rows}
    if table.number == TABLE_7.number:
        (budget,) = budgets.values()
        return dict(zip(found, presets.table_7(budget, num_layers=num_layers).values(), strict=True))
    if table.number == TABLE_4.number:
        (budget,) = budgets.values()
        return {**presets.table_4(budget)}
    is_published = table.number == TABLE_1.number and (num_layers, visual_tokens) == (_PAPER_LAYERS, LLAVA_15_7B.tokens)
    for row in table.rows:
        if row.budget is not None:
            authors = _AUTHORS.get(row.method, {}).get(row.budget) if is_published else None
            found[row.name] = authors or presets.equal_budgets(budgets[row.budget])[row.method]
    return found


def _scaled(budget: int, tokens: int, paper_tokens: int) -> int | float:
    exact = budget * tokens / paper_tokens
    return int(exact) if exact.is_integer() else exact
