"""Measured numbers beside published ones: as plain data, as cells, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitcop_llava.tools.lmms.plan import Plan
from vitcop_llava.tools.lmms.published import KEPT, Column
from vitcop_llava.tools.lmms.records import Line, Record, Settings
from vitcop_llava.tools.markdown import markdown_table

_PAPER = "ViTCoP: Accelerating Large Vision-Language Models via Visual and Textual Semantic Collaborative Pruning"
SOURCE = f"Luo et al., {_PAPER}"


def lines(plan: Plan, records: Sequence[Record]) -> list[Line]:
    """Return a table's rows.

    Args:
        plan: What is told of it.
        records: What was run of it.
    """
    by_run = {(record["row"], record["task"]): record for record in records}
    found = []
    for row in plan.rows:
        own = {task.name: by_run[row.name, task.name] for task in plan.tasks if (row.name, task.name) in by_run}
        published = dict(zip((column.name for column in plan.table.columns), row.published, strict=True))
        kept = [record["costs"][KEPT] for record in own.values() if KEPT in record.get("costs", {})]
        line: Line = {
            "row": row.name,
            "budget": row.budget,
            "method": next((record["method"] for record in own.values()), None),
            "measured": {column.name: _value(own, column) for column in plan.columns},
            "published": {column.name: published[column.name] for column in plan.columns},
            "tokens": sum(kept) / len(kept) if kept else None,
            "share": None,
            "published_share": row.average if plan.columns == plan.table.columns else None,
            "out_of_reach": next((each["out_of_reach"] for each in own.values() if "out_of_reach" in each), None),
            "errors": {name: record["error"] for name, record in own.items() if "error" in record},
        }
        found.append(line)
    unpruned = next((line["measured"] for line in found if line["budget"] is None), None)
    for line in found:
        line["share"] = None if unpruned is None else _share(plan.columns, line["measured"], unpruned)
    return found


def _value(records: Mapping[str, Record], column: Column) -> float | None:
    record = records.get(column.task.name) if column.task else None
    if record is None or "scores" not in record:
        return None
    numbers = record["scores"] if column.is_score else record["costs"]
    told = [numbers[name] for name in column.metrics if name in numbers]
    return column.factor * sum(told) if len(told) == len(column.metrics) else None


def _share(
    columns: Sequence[Column], numbers: Mapping[str, float | None], unpruned: Mapping[str, float | None]
) -> float | None:
    pairs = [(numbers[column.name], unpruned[column.name]) for column in columns if column.is_score and column.task]
    shares = [100 * number / whole for number, whole in pairs if number is not None and whole]
    return sum(shares) / len(shares) if shares and len(shares) == len(pairs) else None


def headings(plan: Plan, found: Sequence[Line]) -> list[str]:
    """Return what stands above `cells`, the row's own name first."""
    return ["", "tokens", *(column.name for column in plan.columns), *(["mean share"] if _has_shares(found) else [])]


def cells(plan: Plan, found: Sequence[Line]) -> list[list[str]]:
    """Return the lines as texts: measured, and in brackets what the paper says."""
    rows = []
    for line in found:
        tokens = "" if line["tokens"] is None else f"{line['tokens']:.4g}"
        if line["out_of_reach"]:
            tokens = "out of reach"
        pairs = [(line["measured"][column.name], line["published"][column.name]) for column in plan.columns]
        row = [line["row"], tokens, *(_pair(*pair) for pair in pairs)]
        rows.append(row + ([_pair(line["share"], line["published_share"], "%")] if _has_shares(found) else []))
    return rows


def _has_shares(found: Sequence[Line]) -> bool:
    return any(line["share"] is not None or line["published_share"] is not None for line in found)


def _pair(measured: float | None, published: float | None, unit: str = "") -> str:
    told = "-" if measured is None else f"{measured:.4g}{unit}"
    return told if published is None else f"{told} ({published:.4g}{unit})"


def remarks(plan: Plan, settings: Settings, found: Sequence[Line]) -> list[str]:
    """Return how a table was run, how that differs from the paper, and what is missing."""
    limit = "all questions" if plan.limit is None else f"at most {plan.limit} questions of each task"
    arguments = "".join(f", {name}={value}" for name, value in settings["arguments"].items())
    versions = ", ".join(f"{name} {number}" for name, number in settings["packages"].items() if number)
    gone = [f"{line['row']} is out of reach: {line['out_of_reach']}" for line in found if line["out_of_reach"]]
    failed = [f"{line['row']}, {task} failed: {said}" for line in found for task, said in line["errors"].items()]
    return [
        f"model: {plan.model}{arguments}; batches of {plan.batch_size}, {limit}, dtype {settings['dtype']}",
        f"versions: {versions}",
        *plan.table.notes,
        *gone,
        *failed,
    ]


def caption(plan: Plan) -> str:
    """Return what a table's numbers are, and where those in brackets come from."""
    if plan.is_demo:
        return "Measured."
    return f"Measured, and in brackets the numbers of Table {plan.table.number} of the paper ({SOURCE})."


def report(plan: Plan, settings: Settings, found: Sequence[Line]) -> str:
    """Return a page in Markdown."""
    said = "".join(f"- {remark.rstrip('.')}.\n" for remark in remarks(plan, settings, found))
    return (
        f"# Table {plan.table.number}: {plan.table.title}\n\n{caption(plan)}\n\n"
        f"{markdown_table(headings(plan, found), cells(plan, found))}\n\n{said}"
    )
