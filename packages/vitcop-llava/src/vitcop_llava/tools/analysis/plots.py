"""Figures 2a, 2b, 3a, 4 and 6, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitcop_llava.tools.analysis.accuracy import Accuracy
from vitcop_llava.tools.analysis.result import Analysis, quartiles
from vitcop_llava.tools.analysis.statistics import Floats
from vitcop_llava.tools.analysis.verdict import CLEAR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

_BLUE, _ORANGE, _GREY = "tab:blue", "tab:orange", "tab:gray"
_HEATS_ACROSS = 8


def draw_figures(analysis: Analysis, model: str, view: Image.Image | None = None) -> dict[str, Figure]:
    """Return every figure that there is data for, by its name (``figure-2a`` and so on).

    Args:
        analysis: The data.
        model: What the titles call the model.
        view: The picture of the first prompt, for Figure 6.
    """
    figures = {"figure-2a": _cls_attention(analysis, model)}
    if analysis.accuracy is not None:
        figures["figure-2b"] = _accuracy(analysis.accuracy, analysis.signal, model)
    figures["figure-3a"] = _proxy(analysis, model)
    figures["figure-4"] = _over_layers(analysis, model)
    figures["figure-6"] = _heats(analysis, model, view)
    return figures


def _figure(width: float, height: float, title: str) -> Figure:
    # Not through pyplot, which would keep every figure and choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    figure.suptitle(title)
    return figure


def _cls_attention(analysis: Analysis, model: str) -> Figure:
    figure = _figure(6, 4.2, f"{analysis.signal} in the top tokens: {model}")
    axes, percent = figure.subplots(), np.arange(101)
    _band(axes, percent, 100 * analysis.of("cls_curve"), _BLUE, "median and quartiles over prompts")
    axes.plot([0, 100], [0, 100], color=_GREY, linestyle=":", label="the same on every token")
    if analysis.has_cls:
        axes.plot(10, 60, "v", color=_ORANGE, label="paper, LLaVA-1.5-7B: 10 % hold over 60 %")
    share = f"share of the {analysis.signal}, %"
    axes.set(xlabel="visual tokens, most attention first, %", ylabel=share, xlim=(0, 100))
    axes.set_ylim(0, 102)
    _finish(axes)
    return figure


def _accuracy(accuracy: Accuracy, signal: str, model: str) -> Figure:
    figure = _figure(6, 4.2, f"Answers on the top tokens by {signal}: {model}")
    axes = figure.subplots()
    scores = sorted(accuracy.reached, key=lambda score: score.share)
    right = [100 * score.right / accuracy.questions for score in scores]
    axes.plot([score.share for score in scores], right, marker="o", color=_BLUE, label="Stage I alone")
    whole = 100 * accuracy.unpruned / accuracy.questions
    axes.axhline(whole, color=_GREY, linestyle="--", label="unpruned")
    axes.plot(20, 0.95 * whole, "v", color=_ORANGE, label="paper, LLaVA-1.5-7B: 20 % keep about 95 % of that")
    label = f"right answers to {accuracy.questions} questions, %"
    axes.set(xlabel="visual tokens kept, %", ylabel=label, xlim=(0, 102), ylim=(0, 102))
    _finish(axes)
    return figure


def _proxy(analysis: Analysis, model: str) -> Figure:
    layers = np.arange(analysis.num_layers)
    figure = _figure(7 + 3.4 * len(analysis.points), 4.4, f"Key norm against attention: {model}")
    panels = figure.subplots(1, 1 + len(analysis.points), width_ratios=[2, *[1] * len(analysis.points)])
    axes: Axes = panels[0]
    _band(axes, layers, analysis.of("correlation"), _BLUE, "attention of the last prompt token")
    text = np.median(analysis.of("text_correlation"), axis=0)
    axes.plot(layers, text, color=_ORANGE, marker=".", linestyle="--", label="of all text after the image, median")
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.axhspan(-CLEAR, CLEAR, color=_GREY, alpha=0.12, label=f"below {CLEAR} in size: no stand-in")
    for cut, stage in zip(analysis.cuts, ("Stage II reads", "Stage III reads"), strict=True):
        axes.axvline(cut - 1, color="black", linestyle=":", linewidth=1)
        axes.annotate(stage, (cut - 1, 0.98), rotation=90, ha="right", va="top", fontsize="small")
    axes.set(xlabel="layer", ylabel="rank correlation", ylim=(-1, 1))
    _finish(axes)
    _whole_numbers(axes)
    for panel, (layer, points) in zip(panels[1:], analysis.points.items(), strict=True):
        _scatter(panel, layer, points)
    return figure


def _scatter(axes: Axes, layer: int, points: Floats) -> None:
    # A token without any attention has no place on a logarithmic scale.
    norm, attention = points[points[:, 1] > 0].T
    axes.scatter(norm, attention, s=4, alpha=0.35, color=_BLUE, linewidths=0)
    axes.set(yscale="log", xlabel="key norm / median", ylabel="attention / even share", title=f"layer {layer}")
    axes.grid(alpha=0.3)


def _over_layers(analysis: Analysis, model: str) -> Figure:
    figure, layers = _figure(10.5, 4.2, f"Attention to visual tokens over the layers: {model}"), analysis.num_layers
    titles = {
        "visual_share": "share of the last prompt token's attention, %",
        "effective_share": "visual tokens that it spreads over, %",
    }
    for axes, (name, label) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        _band(axes, np.arange(layers), 100 * analysis.of(name), _BLUE, "median and quartiles over prompts")
        for cut in analysis.cuts:
            axes.axvline(cut - 0.5, color="black", linestyle=":", linewidth=1)
        axes.plot([], [], color="black", linestyle=":", label="ViTCoP's cuts")
        axes.set(xlabel="layer", ylabel=label, ylim=(0, 102))
        _finish(axes)
        _whole_numbers(axes)
    return figure


def _heats(analysis: Analysis, model: str, view: Image.Image | None) -> Figure:
    heats, first = analysis.heat, 0 if view is None else 1
    count = len(heats) + first
    down = -(-count // _HEATS_ACROSS)
    across = -(-count // down)
    figure = _figure(1.7 * across, 1.95 * down + 0.5, f"Attention to the visual tokens, layer by layer: {model}")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    if view is not None:
        panels[0].imshow(view, extent=(0, heats.shape[2], heats.shape[1], 0))
        panels[0].set_title("the image", fontsize="small")
    for layer, heat in enumerate(heats):
        # Each on its own scale: attention to the picture as a whole is in Figure 4.
        panels[first + layer].imshow(heat, cmap="magma", extent=(0, heat.shape[1], heat.shape[0], 0))
        panels[first + layer].set_title(f"layer {layer}", fontsize="small")
    return figure


def _band(
    axes: Axes, places: np.ndarray[tuple[int], np.dtype[np.int64]], values: Floats, color: str, name: str
) -> None:
    low, median, high = quartiles(values)
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(places, median, color=color, marker="." if len(places) <= 64 else None, label=name)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
