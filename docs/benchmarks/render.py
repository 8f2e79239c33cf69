"""Writes the stored results into README.md and pages of docs/, and draws them: ``nox -s figures``.

Tables stand between markers such as ``<!-- accuracy: begin -->``; a test holds them against the stored results.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vitcop_cuda.bench.report import draw_growth, kernels_table, registers_table
from vitcop_llava.benchmark.report import HEADINGS, PART_HEADINGS, cells, part_cells
from vitcop_llava.benchmark.result import Row
from vitcop_llava.demo.evaluate import Score
from vitcop_llava.demo.questions import KINDS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGES = (ROOT / "README.md", HERE / "index.md", HERE.parent / "kernels.md")
IMAGES = HERE.parent / "images"

Stored = dict[str, Any]


def accuracy(score: Stored, kind: str | None = None) -> float:
    """Share of right answers to one kind of question, or to all."""
    return Score(**score).accuracy(kind)


def accuracy_table(stored: Stored, *, ablations: bool) -> str:
    """Exact answers of the demo model, a line for each budget and, with ``ablations``, each variant."""
    lines = [
        "| | share | tokens | colour | shape | where | count | mark | all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for score in stored["scores"]:
        if score["unreachable"] is not None:
            if ablations:
                lines.append(f"| {score['variant']} | {score['retention_ratio']} | out of reach | | | | | | |")
            continue
        if not ablations and score["variant"] not in ("unpruned", "ViTCoP") and not _fills_gap(stored, score):
            continue
        cells = [f"{accuracy(score, kind):.1%}" for kind in (*KINDS, None)]
        tokens = f"{score['average_tokens']:.4g}"
        lines.append("| " + " | ".join([score["variant"], score["retention_ratio"], tokens, *cells]) + " |")
    scenes = f"{stored['scenes']:,}"
    asked = f"{sum(stored['scores'][0]['questions'].values()):,}"
    lines += [
        "",
        f"Exact answers of the demo model to {asked} questions about {scenes} held-out scenes; `tokens` is the average "
        f"over the language model's layers, of {stored['visual_tokens']}. `python -m vitcop_llava.demo.evaluate`.",
    ]
    return "\n".join(lines)


def _fills_gap(stored: Stored, score: Stored) -> bool:
    """Whether the method itself cannot reach this budget, and this is its nearest relative that can."""
    missed = {s["retention_ratio"] for s in stored["scores"] if s["variant"] == "ViTCoP" and s["unreachable"]}
    relative: bool = score["variant"].startswith("cuts before") and score["retention_ratio"] in missed
    return relative


def bench_table(stored: Stored, *, columns: int) -> str:
    """The first columns of what ``vitcop bench`` measured, and how."""
    rows = [Row.load(row) for row in stored["rows"]]
    lines = _table(HEADINGS[:columns], [cells(row)[:columns] for row in rows])
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
    return "\n".join(_table(PART_HEADINGS, [part_cells(Row.load(row)) for row in stored["rows"] if row["parts"]]))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


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
    "accuracy": ("demo-accuracy.json", lambda stored: accuracy_table(stored, ablations=False)),
    "ablations": ("demo-ablations.json", lambda stored: accuracy_table(stored, ablations=True)),
    "prefill": ("bench-llava-1.5-7b-cpu.json", lambda stored: bench_table(stored, columns=6)),
    "bench": ("bench-llava-1.5-7b-cpu.json", lambda stored: bench_table(stored, columns=len(HEADINGS))),
    "bench-parts": ("bench-llava-1.5-7b-cpu.json", parts_table),
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


def draw(stored: Stored, target: Path) -> None:
    """Accuracy against average tokens, a line for each variant."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    whole = next(score for score in stored["scores"] if score["variant"] == "unpruned")
    variants = dict.fromkeys(score["variant"] for score in stored["scores"] if score is not whole)
    for variant in variants:
        points = [s for s in stored["scores"] if s["variant"] == variant and s["unreachable"] is None]
        tokens, shares = [s["average_tokens"] for s in points], [100 * accuracy(s) for s in points]
        axes.plot(tokens, shares, marker="o", label=variant, linewidth=2.5 if variant == "ViTCoP" else 1.2)
    axes.axhline(100 * accuracy(whole), color="gray", linestyle="--", label="unpruned")
    axes.set(xlabel=f"visual tokens, average over layers (of {stored['visual_tokens']})", ylabel="exact answers, %")
    axes.set(title=f"demo model, {stored['scenes']:,} held-out scenes", ylim=(50, 102))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(target, dpi=120)


def main() -> None:
    """Rewrites the pages and the plot."""
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
    draw(json.loads((HERE / "demo-ablations.json").read_text()), IMAGES / "accuracy.png")
    if (kernels := HERE / "kernels-cpu.json").exists():
        draw_growth(json.loads(kernels.read_text()), IMAGES / "kernel-growth.png")


if __name__ == "__main__":
    main()
