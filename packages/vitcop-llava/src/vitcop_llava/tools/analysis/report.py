"""The analysis as files: figures, a table of numbers beside each, all of it as JSON, and a report to read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcop_core.files import write_bytes
from vitcop_core.methods._vision import PAPER_CUTOFF
from vitcop_llava.tools.analysis.plots import draw_figures
from vitcop_llava.tools.analysis.result import Analysis, quartiles
from vitcop_llava.tools.analysis.verdict import Verdict
from vitcop_llava.tools.markdown import markdown_table

if TYPE_CHECKING:
    from PIL import Image

NUMBERS, REPORT = "data.json", "report.md"
_CAPTIONS = {
    "figure-2a": "Figure 2a: {signal} in the top tokens, in the layer of the vision tower that Stage I reads.",
    "figure-2b": "Figure 2b: right answers on the top tokens by {signal}, cut no further.",
    "figure-3a": "Figure 3a: key norm against attention, layer by layer, and token by token where the cuts read.",
    "figure-4": "Figure 4 in numbers: how much attention goes to visual tokens, and over how many it spreads.",
    "figure-6": "Figures 4 and 6: attention over the first image, each layer on its own scale.",
}


def render_files(
    analysis: Analysis, verdict: Verdict, about: Mapping[str, Any], model: str, view: Image.Image | None = None
) -> dict[str, bytes]:
    """Return every file of the result, by name.

    Args:
        analysis: The numbers.
        verdict: What they come to.
        about: What ``data.json`` begins with: the command, the environment, the model, and ``left_out``, why there is
            no Figure 2b (None where there is).
        model: What titles call the model.
        view: The picture of the first prompt.
    """
    files: dict[str, bytes] = {}
    for name, figure in draw_figures(analysis, model, view).items():
        picture = BytesIO()
        figure.savefig(picture, format="png")
        files[f"{name}.png"] = picture.getvalue()
    for name, (heading, rows) in tables(analysis, verdict).items():
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows([_short(cell) for cell in row] for row in rows)
        files[f"{name}.csv"] = text.getvalue().encode()
    content = {**about, **analysis.as_json(), "verdict": verdict.as_json()}
    files[NUMBERS] = (json.dumps(content, allow_nan=False) + "\n").encode()
    pictures = [name.removesuffix(".png") for name in files if name.endswith(".png")]
    files[REPORT] = report(analysis, verdict, about, model, pictures).encode()
    return files


Table = tuple[Sequence[str], Iterator[Sequence[Any]]]


def tables(analysis: Analysis, verdict: Verdict) -> dict[str, Table]:
    """Return the numbers of each figure: its name, a heading, and rows."""
    curve = quartiles(100 * analysis.of("cls_curve"))
    text = np.median(analysis.of("text_correlation"), axis=0)
    kept, best = (np.median(analysis.of(name), axis=0) for name in ("kept", "kept_at_best"))
    shares = [part for name in ("visual_share", "effective_share") for part in quartiles(analysis.of(name))]
    found: dict[str, Table] = {
        "figure-2a": (
            ("percent_of_tokens", "low", "median", "high"),
            ((percent, *values) for percent, values in enumerate(zip(*curve, strict=True))),
        ),
        "figure-3a": (
            "layer low median high agreement direction text_median kept_attention kept_at_best".split(),
            (
                (each.layer, each.low, each.correlation, each.high, each.agreement, each.direction, *more)
                for each, *more in zip(verdict.layers, text, kept, best, strict=True)
            ),
        ),
        "figure-3a-points": (
            ("layer", "norm_over_median", "attention_over_even_share"),
            ((layer, *point) for layer, points in analysis.points.items() for point in points),
        ),
        "figure-4": (
            ("layer", *(f"{name}_{part}" for name in ("visual", "effective") for part in ("low", "median", "high"))),
            ((layer, *values) for layer, values in enumerate(zip(*shares, strict=True))),
        ),
        "figure-6": (
            ("layer", "row", "column", "attention"),
            ((*place, value) for place, value in np.ndenumerate(analysis.heat)),
        ),
    }
    if (accuracy := analysis.accuracy) is not None:
        found["figure-2b"] = (
            ("percent_of_tokens", "right", "questions", "of_unpruned"),
            ((score.share, score.right, accuracy.questions, accuracy.relative(score)) for score in accuracy.reached),
        )
    return found


def report(analysis: Analysis, verdict: Verdict, about: Mapping[str, Any], model: str, pictures: Sequence[str]) -> str:
    """Return the report, as Markdown."""
    lines = ["# Does ViTCoP suit this model?", "", f"`{about['command']}`", ""]
    lines += [
        f"{model}: {analysis.num_layers} layers, {len(analysis.samples)} prompts.",
        "",
        "## Verdict",
        "",
        verdict.text,
        "",
    ]
    lines += [
        "## The paper's claims",
        "",
        markdown_table(("", "paper, LLaVA-1.5-7B", "here"), claims(analysis, about)),
        "",
    ]
    visual, effective = (np.median(analysis.of(name), axis=0) for name in ("visual_share", "effective_share"))
    heading = (
        "layer",
        "rank correlation",
        "quartiles",
        "same sign",
        "verdict",
        "attention to the image",
        "spread over",
    )
    rows = [
        (
            str(each.layer),
            f"{each.correlation:+.2f}",
            f"{each.low:+.2f}, {each.high:+.2f}",
            f"{each.agreement:.0%}",
            each.strength,
            f"{visual[each.layer]:.0%}",
            f"{effective[each.layer]:.0%}",
        )
        for each in verdict.layers
    ]
    lines += ["## Layer by layer", "", markdown_table(heading, rows), ""]
    lines += ["Medians over the prompts; *spread over*: the effective number of visual tokens, as a share of all.", ""]
    for name in pictures:
        caption = _CAPTIONS[name].format(signal=analysis.signal)
        lines += [f"![{caption}]({name}.png)", "", caption, ""]
    return "\n".join(lines)


def claims(analysis: Analysis, about: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what the paper says of LLaVA-1.5-7B, and what was measured: claim, paper, here."""
    low, median, high = quartiles(100 * analysis.of("cls_curve")[:, 10])
    return [
        (
            f"{analysis.signal} that the top 10 % of the tokens hold",
            "over 60 %" if analysis.has_cls else "no such tower",
            f"{median:.0f} % (quartiles {low:.0f} and {high:.0f})",
        ),
        ("answers that the top 20 % of the tokens keep", "about 95 %", _answers(analysis, about)),
        ("cutoff distance of the clustering", f"{PAPER_CUTOFF:g}", _cutoff(analysis)),
    ]


def _answers(analysis: Analysis, about: Mapping[str, Any]) -> str:
    """Return which part of the right answers the top 20 % of the tokens keep, or why that is not known."""
    accuracy = analysis.accuracy
    if accuracy is None:
        return f"not measured: {about['left_out']}"
    near = [score for score in accuracy.reached if score.share == 20]
    if not near or not accuracy.unpruned:
        why = "20 % is not among the shares" if accuracy.unpruned else "the unpruned model has no right answer"
        return f"not measured: {why}"
    return f"{near[0].right / accuracy.unpruned:.0%} ({near[0].right} right, {accuracy.unpruned} unpruned)"


def _cutoff(analysis: Analysis) -> str:
    """Return what ViTCoP clusters by, and what its rule for other towers finds."""
    given, auto = analysis.cutoff, "nothing"
    if len(analysis.found_cutoffs):
        low, median, high = quartiles(analysis.found_cutoffs)
        auto = f"{median:.3g} (quartiles {low:.3g} and {high:.3g})"
    return f"'auto', which finds {auto}" if given == "auto" else f"{given:g}; 'auto' would find {auto}"


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write them into a folder, each whole or not at all, and remove what an earlier result left.

    The folder is made if it is not there.

    Raises:
        OSError: It cannot be written to.
    """
    folder.mkdir(exist_ok=True)
    for name in (f"{figure}{kind}" for figure in _CAPTIONS for kind in (".png", ".csv")):
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        write_bytes(folder / name, data)


def _short(cell: Any) -> Any:
    return f"{cell:.6g}" if isinstance(cell, float | np.floating) else cell
