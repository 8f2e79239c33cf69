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

from matplotlib import rc_context

from vitcop_core.environment import machine_of
from vitcop_core.files import write_whole
from vitcop_cuda.bench.report import draw_growth, kernels_table, registers_table
from vitcop_llava.tools.benchmark.decoding import Decoding
from vitcop_llava.tools.benchmark.host import HostCost
from vitcop_llava.tools.benchmark.layers import LayerTimes
from vitcop_llava.tools.benchmark.many import Way
from vitcop_llava.tools.benchmark.plot import draw_prefill
from vitcop_llava.tools.benchmark.report import (
    BUSY_HEADINGS,
    HEADINGS,
    PART_HEADINGS,
    as_bytes,
    as_seconds,
    busy_cells,
    part_cells,
)
from vitcop_llava.tools.benchmark.report import cells as bench_cells
from vitcop_llava.tools.benchmark.result import BenchRow
from vitcop_llava.tools.benchmark.tower import TowerTimes
from vitcop_llava.tools.comparison.plot import draw_tradeoff
from vitcop_llava.tools.comparison.report import caption, cells, headings, kinds_table
from vitcop_llava.tools.comparison.stored import StoredComparison, reached, unpruned
from vitcop_llava.tools.markdown import markdown_table
from vitcop_video.bench import ReaderTimes
from vitcop_video.demo.evaluate import VariantScore
from vitcop_vllm.bench import table as served_table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGES = (
    ROOT / "README.md",
    HERE.parent / "index.md",
    HERE / "index.md",
    HERE.parent / "demo-video-model.md",
    HERE.parent / "kernels.md",
    HERE.parent / "howto" / "many-questions.md",
    HERE.parent / "howto" / "video.md",
    HERE.parent / "reliability.md",
    HERE.parent / "howto" / "vllm.md",
)
IMAGES = HERE.parent / "images"

Stored = dict[str, Any]
"""A file. Its rows are loaded as what they were stored from."""


def machine(stored: Stored | StoredComparison) -> str:
    """Say what a result was measured on."""
    return machine_of(stored["environment"])


def comparison_table(stored: StoredComparison) -> str:
    """Render the table of ``vitcop compare``."""
    table = markdown_table(headings(stored), cells(stored))
    return f"{table}\n\n{caption(stored)} `{stored['command']}`."


def ablation_table(stored: StoredComparison) -> str:
    """Render the same without times, which say nothing of variants of one method on a model this small."""
    return comparison_table({**stored, "timing": None})


def kinds(stored: StoredComparison) -> str:
    """Tabulate right answers by kind of question."""
    return kinds_table(stored["comparison"]) or ""


def bench_table(stored: Stored) -> str:
    """Tabulate what ``vitcop bench`` measured, and say how."""
    rows = [BenchRow.load(row) for row in stored["rows"]]
    lines = [markdown_table(HEADINGS, [bench_cells(row) for row in rows])]
    for row in rows:
        if row.missing is not None:
            lines += ["", f"{row.remark}."]
    packages = stored["environment"]["packages"]
    lines += [
        "",
        f"Medians of {stored['repeats']} interleaved rounds, and half of the range between their quartiles: the shape "
        f"of {stored['shape']}, random weights, {stored['dtype']}, {stored['visual_tokens']} visual tokens and "
        f"{stored['text_tokens']} of text, on {machine(stored)}, torch {packages['torch']}, transformers "
        f"{packages['transformers']}. The oracle is tower, projector and head as they are and the bare layers at the "
        f"plan's lengths; ratios to it are medians of the rounds' own. `{stored['command']}`.",
    ]
    return "\n".join(lines)


def headline(stored: Stored) -> str:
    """Say in one sentence what a share of LLaVA-NeXT-13B's tokens costs under ViTCoP, beside all of them."""
    whole, pruned = (BenchRow.load(row) for row in stored["rows"])
    assert whole.prefill is not None
    assert pruned.prefill is not None
    assert whole.cache_bytes is not None
    assert pruned.cache_bytes is not None
    times = f"{1e3 * pruned.prefill.median:.0f} ms instead of {1e3 * whole.prefill.median:.0f} ms"
    caches = f"{as_bytes(pruned.cache_bytes)} instead of {as_bytes(whole.cache_bytes)}"
    return (
        f"**With {pruned.retained_tokens} of its {stored['visual_tokens']:,} visual tokens, LLaVA-NeXT-13B reaches its "
        f"first token in {times}, and its key-value cache takes {caches}.** Measured on an {machine(stored)} in "
        f"{stored['dtype']}, with random weights, {stored['text_tokens']} tokens of text and `capture=True`."
    )


def overhead(stored: Stored) -> str:
    """Say how near pruned runs come to the bare model, over all methods and budgets."""
    rows = [BenchRow.load(row) for row in stored["rows"]]
    over = [row.over_oracle.median - 1 for row in rows if row.over_oracle is not None]
    return (
        f"Pruning takes between {min(over):.1%} and {max(over):.1%} more time than the bare model at the same lengths, "
        "which has nothing to choose."
    )


def accuracy(stored: StoredComparison) -> str:
    """Say how often ViTCoP at a ninth answers as well as the unpruned demo model."""
    compared = stored["comparison"]
    ninth = next(row for row in reached(compared) if (row["label"], row["retain"]) == ("ViTCoP", "1/9"))
    whole, pruned = (row["accuracy"]["value"] for row in (unpruned(compared), ninth))
    return (
        f"Over {compared['questions']:,} held-out questions the demo model is right {whole:.1%} of the time with all "
        f"of its tokens and {pruned:.1%} of the time with a ninth of them."
    )


def parts_table(stored: Stored) -> str:
    """Tabulate where the time of those prefills goes."""
    return markdown_table(PART_HEADINGS, [part_cells(BenchRow.load(row)) for row in stored["rows"] if row["parts"]])


def busy_table(stored: Stored) -> str:
    """Tabulate what a GPU worked in those prefills."""
    rows = [BenchRow.load(row) for row in stored["rows"]]
    return markdown_table(BUSY_HEADINGS, [cells for row in rows if (cells := busy_cells(row))])


def check_table(stored: Stored) -> str:
    """Tabulate small models on a GPU, beside the same models on the CPU."""
    lines = []
    for where, found in stored.items():
        if not isinstance(found, dict) or "properties" not in found:
            continue
        properties, costs = found["properties"], found["costs"]
        compared = [each for each in found.values() if "kept_equal" in each]
        plain, pruned = (costs[f"{name}, mask of ones"] for name in ("unpruned", "pruned"))
        lines.append(
            [
                where.replace("_", "\\_"),
                f"{sum(each['kept_equal'] for each in compared)} of {len(compared)}",
                f"{max(each['logits_apart'] for each in compared):.1g}",
                *(f"{properties[f'{name}_apart']:.1g}" for name in ("keep_all", "rows", "decoded")),
                *(f"{plain[f'launches_{part}']}, {pruned[f'launches_{part}']}" for part in ("prefill", "decode")),
                f"{len(plain['waits_prefill'])}, {len(pruned['waits_prefill'])}",
            ]
        )
    headings = ["family, attention", "methods that keep the same", "logits", "keep all", "batch", "cache"]
    headings += ["launches of a prefill", "of a token", "waits of a prefill"]
    return f"{markdown_table(headings, lines)}\n\nOn {machine(stored)}, float32."


def reuse_table(stored: Stored) -> str:
    """Tabulate many questions about one image on its prefix, beside one question asked as usual."""
    sizes = stored["sizes"]
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
        f"{sizes['question_tokens']} tokens and answers of {sizes['new_tokens']}, on {machine(stored)}. "
        f"`{stored['command']}`.",
    ]
    return "\n".join(lines)


def many_table(stored: Stored) -> str:
    """Tabulate many questions to the demo model, a batch at a time, beside a loop over them."""
    lines = [
        [
            way.name,
            str(way.batch_size or 1),
            str(way.threads),
            f"{stored['questions'] / statistics.median(way.seconds):.1f}",
            f"{way.speedup:.2f}",
            f"{way.same_as_loop:.1%}",
            f"{way.right:.1%}",
        ]
        for way in (Way(**row) for row in stored["rows"])
    ]
    headings = ["", "at a time", "threads", "questions a second", "times the loop", "answers as the loop's", "right"]
    return (
        f"{markdown_table(headings, lines)}\n\nMedians of {stored['rounds']} interleaved rounds, and of their ratios: "
        f"{stored['questions']} questions about files, {stored['retain']} of the visual tokens where pruned, on "
        f"{machine(stored)}. `{stored['command']}`."
    )


def decoding_table(stored: Stored) -> str:
    """Tabulate a token of ``generate`` in several caches, unpruned and pruned."""
    lines = []
    for row in (Decoding(**row) for row in stored["rows"]):
        times = map(as_seconds, (statistics.median(row.prefill), row.token_median))
        lines.append([row.method or "unpruned", row.mode, *times, f"{row.over_floor:.2f}", as_bytes(row.cache_bytes)])
    headings = ["", "how", "to the first token", "a token", "of reading the weights", "cache at the end"]
    return (
        f"{markdown_table(headings, lines)}\n\nMedians over {stored['repeats']} answers of {stored['tokens']} tokens: "
        f"the shape of {stored['shape']}, random weights, {stored['dtype']}, on {machine(stored)}. "
        f"`{stored['command']}`."
    )


def layers_table(stored: Stored) -> str:
    """Tabulate decoder layers of a pruned prefill, beside bare ones of the same length."""
    lines = [
        [
            str(each.layer),
            str(each.tokens),
            *(f"{1e3 * statistics.median(times):.4g} ms" for times in (each.pruned, each.bare)),
            f"{each.ratio:.3f}",
        ]
        for each in (LayerTimes(**each) for each in stored["times"])
    ]
    table = markdown_table(["layer", "tokens", "in the prefill", "bare", "ratio"], lines)
    return (
        f"{table}\n\nMedians of {stored['repeats']} prefills and of their ratios: layers of {stored['shape']}, random "
        f"weights, {stored['dtype']}, on {machine(stored)}. `{stored['command']}`."
    )


def host_table(stored: Stored) -> str:
    """Tabulate what a prefill and a token cost the host, beside the unpruned model."""
    lines = [
        [
            row.name,
            "" if row.retained_tokens is None else f"{row.retained_tokens:g}",
            *(f"{1e3 * statistics.median(row.prefill):.4g} ms", f"{row.prefill_ratio:.3f}"),
            *(f"{1e3 * statistics.median(row.token):.4g} ms", f"{row.token_ratio:.3f}"),
        ]
        for row in (HostCost(**row) for row in stored["rows"])
    ]
    headings, place = ["method", "tokens", "prefill", "of unpruned", "a token", "of unpruned"], stored["environment"]
    return (
        f"{markdown_table(headings, lines)}\n\nMedians of {stored['repeats']} rounds, in seconds of one thread on "
        f"{place['processor']}; {stored['visual_tokens']} visual tokens. `{stored['command']}`."
    )


def tower_table(stored: Stored) -> str:
    """Tabulate the vision tower under pruning, beside the unpruned one."""
    lines = []
    for row in (TowerTimes(**row) for row in stored["rows"]):
        cells = [row.method or "unpruned", row.dtype]
        for part, seconds in (("tower", row.tower), ("encoding", row.encoding)):
            cells += [f"{1e3 * statistics.median(seconds):.4g} ms", f"{row.over_unpruned[part]:.3f}"]
        lines.append(cells)
    table = markdown_table(["", "dtype", "tower", "of unpruned", "tower, Stage I, projector", "of unpruned"], lines)
    return (
        f"{table}\n\nMedians of {len(stored['rows'][0]['tower'])} rounds; CLIP ViT-L/14 at 336 pixels, "
        f"{stored['images']} images, random weights, on {machine(stored)}. `{stored['command']}`."
    )


def reading_table(stored: Stored) -> str:
    """Tabulate the reading of a file's frames through vitcop-video, beside the decoders used directly."""
    rows = [ReaderTimes(**row) for row in stored["rows"]]
    counts = [*dict.fromkeys(row.frames for row in rows)]
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        each = {row.frames: row for row in rows if row.name == name}
        shown = [f"{each[count].median:.2f} s, {each[count].over_fastest_direct:.2f}" for count in counts]
        lines.append([name, *shown])
    clip = stored["clip"]
    table = markdown_table(["", *(f"{count} frames" for count in counts)], lines)
    return (
        f"{table}\n\nMedians of {stored['rounds']} interleaved rounds, and their ratio to the fastest decoder used "
        f"directly: {clip['frames'] / clip['rate']:.0f} s of {clip['width']} x {clip['height']} H.264, opened anew "
        f"each time, on {machine(stored)}. `{stored['command']}`."
    )


def clips_table(stored: Stored) -> str:
    """Tabulate right answers of the demo video model: a line for each way to prune, a column for each budget."""
    whole, *rows = _scores(stored)
    budgets = [*dict.fromkeys(row.retention_ratio for row in rows)]
    lines = []
    for variant in dict.fromkeys(row.variant for row in rows):
        each = {row.retention_ratio: row for row in rows if row.variant == variant}
        lines.append([variant, *(_clip_cell(each[budget], whole) for budget in budgets)])
    place = stored["environment"]
    return (
        f"{markdown_table(['', *budgets], lines)}\n\nExact answers to one question about each of {stored['clips']:,} "
        f"held-out clips, in brackets of the unpruned accuracy, and tokens on average over the layers. Unpruned, "
        f"{whole.accuracy():.1%} are right with {whole.average_tokens:.4g} tokens. torch {place['packages']['torch']}, "
        f"transformers {place['packages']['transformers']}. `{stored['command']}`."
    )


def _scores(stored: Stored) -> list[VariantScore]:
    return [VariantScore(**row) for row in stored["scores"]]


def _clip_cell(row: VariantScore, whole: VariantScore) -> str:
    if row.unreachable is not None:
        return "out of reach"
    return f"{row.accuracy():.1%} ({row.accuracy() / whole.accuracy():.1%}), {row.average_tokens:.4g}"


def clip_kinds(stored: Stored) -> str:
    """Render the same at a ninth by kind of question."""
    rows = [row for row in _scores(stored) if row.retention_ratio in {"1", "1/9"} and row.unreachable is None]
    asked = rows[0].questions
    heads = ["", *(f"{kind} ({count})" for kind, count in asked.items())]
    return markdown_table(heads, [[row.variant, *(f"{row.accuracy(kind):.1%}" for kind in asked)] for row in rows])


def ordeal_table(stored: Stored) -> str:
    """Tabulate what was tried in the ordeal, kind by kind."""
    lines = [
        [
            row["kind"],
            *(f"{row[name]:,}" for name in ("tried", "accepted", "refused")),
            str(len(row["faults"])),
            f"{row['slowest']:.1f} s",
            f"{row['bytes'] / 2**20:.0f} MiB",
            f"{row['seconds']:,.0f} s",
        ]
        for row in stored["inputs"]
    ]
    total, place = sum(row["tried"] for row in stored["inputs"]), stored["environment"]
    headings = ["kind", "tried", "accepted", "refused", "faults", "slowest", "most memory", "in all"]
    return (
        f"{markdown_table(headings, lines)}\n\n{total:,} inputs with the seed {stored['seed']}, on {machine(stored)}, "
        f"torch {place['packages']['torch']}, transformers {place['packages']['transformers']}. `{stored['command']}`."
    )


def ordeal_requests(stored: Stored) -> str:
    """Say what came of the requests from several threads, and of the kills."""
    (run,) = stored["requests"]
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(run["kinds"].items()))
    growth = (run["after"] - run["before"]) / 2**20
    lines = [[row["name"], str(row["killed"]), row["fault"] or "none"] for row in stored["kills"]]
    return (
        f"{run['requests']:,} requests from {run['threads']} threads ({kinds}), {len(run['faults'])} faults; after the "
        f"first tenth, memory grew by {growth:.1f} MiB, to {run['after'] / 2**20:.0f} MiB.\n\n"
        f"{markdown_table(['killed', 'times', 'faults'], lines)}"
    )


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "comparison": ("demo-comparison.json", comparison_table),
    "kinds": ("demo-comparison.json", kinds),
    "table-4": ("demo-table-4.json", ablation_table),
    "table-7": ("demo-table-7.json", ablation_table),
    "official": ("demo-official.json", ablation_table),
    "signals": ("demo-signals.json", ablation_table),
    "clip-signals": ("demo-clip-signals.json", ablation_table),
    "bench-qwen": ("bench-qwen2.5-vl-7b-cpu.json", bench_table),
    "headline": ("bench-llava-next-13b-captured-h100.json", headline),
    "overhead": ("bench-llava-1.5-7b-cpu.json", overhead),
    "accuracy": ("demo-comparison.json", accuracy),
    "bench": ("bench-llava-1.5-7b-cpu.json", bench_table),
    "bench-parts": ("bench-llava-1.5-7b-cpu.json", parts_table),
    "reuse": ("reuse-llava-1.5-7b-cpu.json", reuse_table),
    "bench-7b-gpu": ("bench-llava-1.5-7b-h100.json", bench_table),
    "busy-7b": ("bench-llava-1.5-7b-h100.json", busy_table),
    "bench-13b-gpu": ("bench-llava-next-13b-h100.json", bench_table),
    "busy-13b": ("bench-llava-next-13b-h100.json", busy_table),
    "bench-7b-captured": ("bench-llava-1.5-7b-captured-h100.json", bench_table),
    "bench-13b-captured": ("bench-llava-next-13b-captured-h100.json", bench_table),
    "many": ("many-demo-cpu.json", many_table),
    "decoding": ("decoding-llava-1.5-7b-h100.json", decoding_table),
    "decoding-cpu": ("decoding-llava-1.5-7b-4-layers-cpu.json", decoding_table),
    "model-check": ("model-check-h100.json", check_table),
    "served": ("vllm-cpu.json", served_table),
    "kernels-gpu": ("kernels-h100.json", kernels_table),
    "layers": ("layers-llava-1.5-7b-h100.json", layers_table),
    "host": ("host-narrow-cpu.json", host_table),
    "tower": ("tower-clip-large-h100.json", tower_table),
    "reading": ("video-reading.json", reading_table),
    "clips": ("demo-video-accuracy.json", clips_table),
    "clip-methods": ("demo-clips.json", ablation_table),
    "clip-kinds": ("demo-video-accuracy.json", clip_kinds),
    "ordeal": ("ordeal.json", ordeal_table),
    "ordeal-requests": ("ordeal.json", ordeal_requests),
    "kernels": ("kernels-cpu.json", kernels_table),
    "registers": ("ptxas.json", registers_table),
}


# What pages show on a light and on a dark ground. The grounds are those of the places where the pages are read.
STYLES: dict[str, dict[Any, str]] = {
    "light": {},
    "dark": dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "#0d1117")
    | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#e6edf3"),
}


def rendered(page: str) -> str:
    """Return a page with every marked table made anew."""
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
    """Rewrite the pages and the plots."""
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    stored = json.loads((HERE / "demo-comparison.json").read_text())["comparison"]
    measured = json.loads((HERE / "bench-llava-1.5-7b-cpu.json").read_text())
    for name, style in STYLES.items():
        with rc_context(style):
            with write_whole(IMAGES / f"tradeoff-{name}.png") as stream:
                draw_tradeoff(stored, stream, f"demo model, {stored['questions']:,} held-out questions")
            with write_whole(IMAGES / f"prefill-{name}.png") as stream:
                draw_prefill(measured, stream)
    if (kernels := HERE / "kernels-cpu.json").exists():
        draw_growth(json.loads(kernels.read_text()), IMAGES / "kernel-growth.png")


if __name__ == "__main__":
    main()
