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

from vitcop_core.files import write_whole
from vitcop_cuda.bench.report import draw_growth, kernels_table, registers_table
from vitcop_llava.benchmark.report import HEADINGS, PART_HEADINGS, part_cells
from vitcop_llava.benchmark.report import cells as bench_cells
from vitcop_llava.benchmark.result import Row
from vitcop_llava.comparison.plot import draw_tradeoff
from vitcop_llava.comparison.report import (
    asked,
    caption,
    cells,
    headings,
    interval,
    kinds_table,
    problem_cells,
)
from vitcop_llava.markdown import markdown_table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGES = (
    ROOT / "README.md",
    HERE / "index.md",
    HERE.parent / "demo-video-model.md",
    HERE.parent / "kernels.md",
    HERE.parent / "howto" / "video.md",
)
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


def bench_table(stored: Stored, *, columns: int) -> str:
    """The first columns of what ``vitcop bench`` measured, and how."""
    rows = [Row.load(row) for row in stored["rows"]]
    lines = [markdown_table(HEADINGS[:columns], [bench_cells(row)[:columns] for row in rows])]
    for row in rows:
        if row.missing is not None:
            lines += ["", f"{row.method} at {row.retained_tokens:g}: {row.missing}."]
    place, packages = stored["environment"], stored["environment"]["packages"]
    machine = place["accelerator"] or f"{place['cores']} cores of {place['processor']}"
    lines += [
        "",
        f"Medians of {stored['repeats']} interleaved rounds, and half of the range between their quartiles: the shape "
        f"of {stored['shape']}, random weights, {stored['dtype']}, {stored['visual_tokens']} visual tokens and "
        f"{stored['text_tokens']} of text, on {machine}, torch {packages['torch']}, transformers "
        f"{packages['transformers']}. The oracle is tower, projector and head as they are and the bare layers at the "
        f"plan's lengths; ratios to it are medians of the rounds' own. `{stored['command']}`.",
    ]
    return "\n".join(lines)


def parts_table(stored: Stored) -> str:
    """Where the time of those prefills goes."""
    return markdown_table(PART_HEADINGS, [part_cells(Row.load(row)) for row in stored["rows"] if row["parts"]])


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


def reading_table(stored: Stored) -> str:
    """Reading frames of a file through vitcop-video, beside the decoders used directly."""
    counts = [*dict.fromkeys(row["frames"] for row in stored["rows"])]
    lines = []
    for name in dict.fromkeys(row["name"] for row in stored["rows"]):
        each = {row["frames"]: row for row in stored["rows"] if row["name"] == name}
        shown = [f"{each[count]['median']:.2f} s, {each[count]['over_fastest_direct']:.2f}" for count in counts]
        lines.append([name, *shown])
    clip, place = stored["clip"], stored["environment"]
    table = markdown_table(["", *(f"{count} frames" for count in counts)], lines)
    return (
        f"{table}\n\nMedians of {stored['rounds']} interleaved rounds, and their ratio to the fastest decoder used "
        f"directly: {clip['frames'] / clip['rate']:.0f} s of {clip['width']} x {clip['height']} H.264, opened anew "
        f"each time, on {place['cores']} cores of {place['processor']}. `{stored['command']}`."
    )


def clips_table(stored: Stored) -> str:
    """Right answers of the demo video model: a line for each way to prune, a column for each budget."""
    whole, *rows = stored["scores"]
    unpruned = _right(whole)
    budgets = [*dict.fromkeys(row["retention_ratio"] for row in rows)]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        each = {row["retention_ratio"]: row for row in rows if row["variant"] == variant}
        lines.append([variant, *(_clip_cell(each[budget], unpruned) for budget in budgets)])
    place = stored["environment"]
    return (
        f"{markdown_table(['', *budgets], lines)}\n\nExact answers to one question about each of {stored['clips']:,} "
        f"held-out clips, in brackets of the unpruned accuracy, and tokens on average over the layers. Unpruned, "
        f"{unpruned:.1%} are right with {whole['average_tokens']:.4g} tokens. torch {place['packages']['torch']}, "
        f"transformers {place['packages']['transformers']}. `{stored['command']}`."
    )


def _clip_cell(row: Stored, unpruned: float) -> str:
    if row["unreachable"] is not None:
        return "out of reach"
    return f"{_right(row):.1%} ({_right(row) / unpruned:.1%}), {row['average_tokens']:.4g}"


def clip_kinds(stored: Stored) -> str:
    """The same at a ninth by kind of question."""
    rows = [row for row in stored["scores"] if row["retention_ratio"] in {"1", "1/9"} and row["unreachable"] is None]
    asked = rows[0]["questions"]
    heads = ["", *(f"{kind} ({count})" for kind, count in asked.items())]
    return markdown_table(heads, [[row["variant"], *(f"{_right(row, kind):.1%}" for kind in asked)] for row in rows])


def _right(row: Stored, kind: str | None = None) -> float:
    kinds = row["questions"] if kind is None else [kind]
    return float(sum(row["right"][k] for k in kinds) / sum(row["questions"][k] for k in kinds))


TABLES: dict[str, tuple[str, Callable[[Stored], str]]] = {
    "kept": ("demo-comparison.json", kept_table),
    "comparison": ("demo-comparison.json", comparison_table),
    "kinds": ("demo-comparison.json", kinds),
    "table-4": ("demo-table-4.json", ablation_table),
    "table-7": ("demo-table-7.json", ablation_table),
    "official": ("demo-official.json", ablation_table),
    "prefill": ("bench-llava-1.5-7b-cpu.json", lambda stored: bench_table(stored, columns=6)),
    "bench": ("bench-llava-1.5-7b-cpu.json", lambda stored: bench_table(stored, columns=len(HEADINGS))),
    "bench-parts": ("bench-llava-1.5-7b-cpu.json", parts_table),
    "reuse": ("reuse-llava-1.5-7b-cpu.json", reuse_table),
    "reading": ("video-reading.json", reading_table),
    "clips": ("demo-video-accuracy.json", clips_table),
    "clip-methods": ("demo-clips.json", ablation_table),
    "clip-kinds": ("demo-video-accuracy.json", clip_kinds),
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
    with write_whole(IMAGES / "tradeoff.png") as stream:
        draw_tradeoff(stored, stream, f"demo model, {stored['questions']:,} held-out questions")
    if (kernels := HERE / "kernels-cpu.json").exists():
        draw_growth(json.loads(kernels.read_text()), IMAGES / "kernel-growth.png")


if __name__ == "__main__":
    main()
