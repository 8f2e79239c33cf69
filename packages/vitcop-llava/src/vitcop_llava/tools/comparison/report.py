"""A comparison in words: a table for people, and a report in Markdown."""

from __future__ import annotations

from vitcop_core.environment import machine_of
from vitcop_llava.tools.comparison.stored import (
    Comparison,
    Measurements,
    StoredComparison,
    StoredEstimate,
    StoredTiming,
    Unreachable,
    reached,
    unpruned,
)
from vitcop_llava.tools.markdown import markdown_table

COLUMNS = ("method", "budget", "tokens", "accuracy", "of unpruned", "MACs", "cache")
TIMES = ("prefill (ms)", "token (ms)", "memory (MiB)")


def headings(result: Measurements) -> list[str]:
    """Return the headings of `cells`."""
    return [*COLUMNS, *(TIMES if result["timing"] else ())]


def cells(result: Measurements) -> list[list[str]]:
    """Return a line for each variant: what it is, what it costs, and how well it answers.

    Args:
        result: The whole result, with ``comparison`` and ``timing``.
    """
    compared = result["comparison"]
    whole = unpruned(compared)
    lines = []
    for row in compared["variants"]:
        line = [row["label"], row["retain"]]
        if row["problem"] is not None:
            line += ["", *problem_cells(row)]
            lines.append([*line, *[""] * (len(headings(result)) - len(line))])
            continue
        shares = (f"{row['macs'] / whole['macs']:.1%}", f"{row['kv_bytes'] / whole['kv_bytes']:.1%}")
        line += [f"{row['tokens']:.4g}", f"{row['accuracy']['value']:.1%}", interval(row["kept"]), *shares]
        lines.append([*line, *_times(result["timing"], row["name"])])
    return lines


def problem_cells(row: Unreachable) -> tuple[str, str]:
    """Return what stands in the place of accuracy and its share, where a budget is out of reach."""
    if row["nearest_tokens"] is None:
        return "does not fit", ""
    return "out of reach", f"nearest: {row['nearest_tokens']} tokens"


def interval(found: StoredEstimate | None) -> str:
    """Return a share with its interval, where it has a width, in per cent."""
    if found is None:
        return "-"
    if found["low"] is None or found["high"] is None or found["low"] == found["high"]:
        return f"{found['value']:.1%}"
    return f"{found['value']:.1%} ({100 * found['low']:.1f}–{100 * found['high']:.1f})"


def _times(timing: StoredTiming | None, name: str) -> list[str]:
    if timing is None:
        return []
    row = timing["variants"][name]
    scaled = ((row["prefill_seconds"], 1e3), (row["token_seconds"], 1e3), (row["peak_bytes"], 2**-20))
    return ["-" if value is None else _number(scale * value) for value, scale in scaled]


def _number(value: float) -> str:
    """Write three digits, or all those before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def kinds_table(compared: Comparison) -> str | None:
    """Return the accuracy by kind of question, in Markdown; None where questions have no kinds."""
    rows = reached(compared)
    kinds = [*dict.fromkeys(kind for row in rows for kind in row["kinds"])]
    if not kinds:
        return None
    lines = []
    for row in rows:
        shares = (f"{row['kinds'][kind][0] / row['kinds'][kind][1]:.1%}" for kind in kinds)
        lines.append([row["label"], row["retain"], f"{row['tokens']:.4g}", *shares])
    return markdown_table(["method", "budget", "tokens", *kinds], lines)


def asked(compared: Comparison) -> str:
    """Return how many questions there were, and what the brackets mean."""
    clips = compared.get("clips", 0)  # results stored before clips could be asked about do not have it
    about = "images" if not clips else "clips" if clips == compared["images"] else "images and clips"
    return (
        f"{compared['questions']:,} questions about {compared['images']:,} {about}; in brackets "
        f"{compared['confidence']:.0%} intervals of {compared['resamples']:,} resamples of the {about}, paired with "
        "the unpruned model's."
    )


def caption(result: Measurements) -> str:
    """Return what the columns mean."""
    compared, timing = result["comparison"], result["timing"]
    whole = unpruned(compared)
    said = (
        f"{asked(compared)} Tokens are averages over the language model's layers and the questions, of "
        f"{whole['tokens']:.4g}; MACs and cache are the language model's prefill, of {whole['macs'] / 1e9:.4g} G and "
        f"{whole['kv_bytes'] / 2**20:.4g} MiB."
    )
    if timing is not None:
        runs = len(next(iter(timing["variants"].values()))["runs"])
        said += f" Times and memory are medians of {runs} questions, one at a time."
    return said


def markdown(result: StoredComparison) -> str:
    """Return the whole report."""
    compared, model = result["comparison"], result["comparison"]["model"]
    per_frame = model.get("visual_tokens_per_frame")  # of models for clips alone
    a_frame = "" if per_frame is None else f" and {per_frame} a frame"
    lines = [
        "# Comparison",
        f"{model['class']} ({model['source']}): {model['layers']} layers, {model['visual_tokens_per_image']} visual "
        f"tokens an image{a_frame}, {model['dtype']} on {model['device']}. Questions: {compared['source']}.",
        "![Accuracy against visual tokens](tradeoff.png)",
        markdown_table(headings(result), cells(result)),
        caption(result),
    ]
    if (kinds := kinds_table(compared)) is not None:
        lines += ["## By kind of question", kinds]
    if problems := [row for row in compared["variants"] if row["problem"] is not None]:
        lines += ["## Out of reach", "\n".join(f"- {row['name']}: {row['problem']}" for row in problems)]
    if compared["faults"]:
        faults = "\n".join(f"- line {fault['number']}: {fault['error']}" for fault in compared["faults"])
        lines += ["## Questions that could not be asked", faults]
    settings = "\n".join(f"- {row['name']}: `{row['settings']}`" for row in compared["variants"] if row["settings"])
    lines += ["## Settings", compared["matching"], settings, f"`{result['command']}`"]
    place = result["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in place["packages"].items() if version)
    lines.append(f"{machine_of(place)}, {place['system']}, Python {place['python']}, {packages}.")
    return "\n\n".join(lines) + "\n"
