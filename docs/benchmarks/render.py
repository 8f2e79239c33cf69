"""Writes the stored results into README.md and pages of docs/, and draws them: ``nox -s figures``.

Tables stand between markers such as ``<!-- accuracy: begin -->``; a test holds them against the stored results.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vitcop_cuda.bench.report import draw_growth, kernels_table, registers_table
from vitcop_llava.comparison.plot import draw_tradeoff
from vitcop_llava.comparison.report import (
    asked,
    caption,
    cells,
    headings,
    interval,
    kinds_table,
    markdown_table,
    problem_cells,
)

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGES = (ROOT / "README.md", HERE / "index.md", HERE.parent / "kernels.md")
IMAGES = HERE.parent / "images"

Stored = dict[str, Any]


def kept_table(stored: Stored) -> str:
    """What each method keeps of the unpruned accuracy: a line for each method, a column for each budget."""
    rows = [row for row in stored["comparison"]["variants"] if row["settings"] is not None]
    budgets = [*dict.fromkeys(row["retain"] for row in rows)]
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        each = {row["retain"]: row for row in rows if row["label"] == label}
        lines.append([label, *(_kept(each[budget]) for budget in budgets)])
    whole = stored["comparison"]["variants"][0]
    lines.append(["tokens, average", *(_tokens(rows, budget, whole["tokens"]) for budget in budgets)])
    table = markdown_table(["of the unpruned accuracy", *budgets], lines)
    right = f"Unpruned, {whole['accuracy']['value']:.1%} of the answers are right."
    return f"{table}\n\n{right} {asked(stored['comparison'])} `{stored['command']}`."


def _kept(row: Stored) -> str:
    return ", ".join(problem_cells(row)) if row["problem"] is not None else interval(row["kept"])


def _tokens(rows: list[Stored], budget: str, whole: float) -> str:
    """The smallest and the largest average of the methods at a budget."""
    found = sorted(row["tokens"] for row in rows if row["retain"] == budget and row["problem"] is None)
    return f"{found[0]:.4g}–{found[-1]:.4g} of {whole:.4g}"


def comparison_table(stored: Stored) -> str:
    """The table of ``vitcop compare``."""
    table = markdown_table(headings(stored), cells(stored))
    return f"{table}\n\n{caption(stored)} `{stored['command']}`."


def ablation_table(stored: Stored) -> str:
    """The same without times, which say nothing of variants of one method on a model this small."""
    return comparison_table(stored | {"timing": None})


def kinds(stored: Stored) -> str:
    """Right answers by kind of question."""
    return kinds_table(stored["comparison"]) or ""


def prefill_table(stored: Stored) -> str:
    """Prefill time beside the oracle and the multiply-accumulates."""
    lines = [
        "| visual tokens | prefill | over its oracle | of unpruned | MACs of unpruned |",
        "|---|---|---|---|---|",
        f"| {stored['visual_tokens']} | {statistics.median(stored['seconds']):.2f} s | | 100 % | 100 % |",
    ]
    for row in stored["budgets"]:
        lines.append(
            f"| {row['retained_tokens']} | {statistics.median(row['seconds']):.2f} s | {row['over_oracle']:.3f} "
            f"| {row['share_of_unpruned']:.1%} | {row['share_of_macs']:.1%} |"
        )
    place, packages = stored["environment"], stored["environment"]["packages"]
    lines += [
        "",
        f"Medians of {len(stored['seconds'])} interleaved rounds: the shape of {stored['shape']}, random weights, "
        f"{stored['dtype']}, one image and {stored['text_tokens']} tokens of text, on {place['cores']} cores of "
        f"{place['processor']}, torch {packages['torch']}, transformers {packages['transformers']}. The oracle is "
        "tower, projector and head as they are and the bare layers at the plan's lengths. "
        "`python -m vitcop_llava.bench`.",
    ]
    return "\n".join(lines)


def reuse_table(stored: Stored) -> str:
    """Many questions about one image on its prefix, beside one question asked as usual."""
    sizes, place = stored["sizes"], stored["environment"]
    rows = {
        "one question, unpruned": "unpruned",
        "one question, pruned": "pruned",
        f"{sizes['questions']} questions on one prefix": "reuse",
        "of which the image": "encode",
        "of which the questions": "answer",
    }
    usual = statistics.median(stored["pruned"])
    lines = ["| | time | of one pruned question |", "|---|---|---|"]
    for name, key in rows.items():
        seconds = statistics.median(stored[key])
        lines.append(f"| {name} | {seconds:.1f} s | {seconds / usual:.2f} |")
    lines += [
        "",
        f"Medians of {len(stored['reuse'])} interleaved rounds: the shape of {stored['shape']}, random weights, "
        f"{stored['dtype']}, {stored['retained_tokens']} of {stored['visual_tokens']} visual tokens, questions of "
        f"{sizes['question_tokens']} tokens and answers of {sizes['new_tokens']}, on {place['cores']} cores of "
        f"{place['processor']}. `{stored['command']}`.",
    ]
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[Stored], str]]] = {
    "kept": ("demo-comparison.json", kept_table),
    "comparison": ("demo-comparison.json", comparison_table),
    "kinds": ("demo-comparison.json", kinds),
    "table-4": ("demo-table-4.json", ablation_table),
    "table-7": ("demo-table-7.json", ablation_table),
    "official": ("demo-official.json", ablation_table),
    "prefill": ("prefill-llava-1.5-7b-cpu.json", prefill_table),
    "reuse": ("reuse-llava-1.5-7b-cpu.json", reuse_table),
    "kernels": ("kernels-cpu.json", kernels_table),
    "registers": ("ptxas.json", registers_table),
}


def rendered(page: str) -> str:
    """A page with every marked table made anew."""
    for name, (file, table) in TABLES.items():
        if not (HERE / file).exists():
            continue
        text = table(json.loads((HERE / file).read_text()))
        pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        page = re.sub(pattern, partial(_between, text), page, flags=re.DOTALL)
    return page


def _between(text: str, found: re.Match[str]) -> str:
    return f"{found[1]}{text}\n{found[2]}"


def main() -> None:
    """Rewrites the pages and the plots."""
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
    stored = json.loads((HERE / "demo-comparison.json").read_text())["comparison"]
    draw_tradeoff(stored, IMAGES / "tradeoff.png", f"demo model, {stored['questions']:,} held-out questions")
    if (kernels := HERE / "kernels-cpu.json").exists():
        draw_growth(json.loads(kernels.read_text()), IMAGES / "kernel-growth.png")


if __name__ == "__main__":
    main()
