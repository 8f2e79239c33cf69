"""The verdict in words: whether key norms stand for attention in a model, at which layers, in which direction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np

from vitcop_llava.tools.analysis.result import KEPT, Analysis, quartiles

STRONG = 0.5
"""A median rank correlation of this size is called strong."""

CLEAR = 0.3
"""Below this size the norm is no stand-in for attention."""

AGREEMENT = 0.9
"""The share of prompts whose correlation has to have the sign of the median, for a layer to have a direction."""

FEW = 10
"""With fewer prompts the verdict says that it rests on few."""

NEARBY = 8
"""Another layer is proposed for a cut where it is at most the depth over this away from the default."""

Direction = Literal["inverse", "none", "direct"]
_MEANINGS: dict[Direction, str] = {
    "inverse": "a low norm means much attention, as ViTCoP assumes",
    "none": "the norm says little about attention",
    "direct": "a low norm means little attention, the reverse of what ViTCoP assumes",
}


@dataclass(frozen=True)
class LayerVerdict:
    """Key norm against attention in one layer, over the prompts.

    Attributes:
        layer: Its index.
        correlation: Median rank correlation.
        low, high: Its quartiles.
        agreement: Share of prompts in which it has the median's sign.
        direction: ``"inverse"`` where the median is at most -`CLEAR` and `AGREEMENT` of the prompts agree, ``"direct"``
            where it is at least `CLEAR` and they do, else ``"none"``.
    """

    layer: int
    correlation: float
    low: float
    high: float
    agreement: float
    direction: Direction

    @property
    def strength(self) -> str:
        """The direction, with its strength."""
        if self.direction == "none":
            return "none"
        return f"{'strong' if abs(self.correlation) >= STRONG else 'moderate'}, {self.direction}"


@dataclass(frozen=True)
class CutVerdict:
    """What one of ViTCoP's cuts ranks by.

    Attributes:
        stage: ``"Stage II"`` or ``"Stage III"``.
        before: The layer that the cut stands before.
        reads: The layer before it, whose norms it ranks by.
        kept: Median share of that layer's attention to visual tokens that the ninth with the lowest norms holds.
        kept_at_best: The same of the ninth with most attention.
    """

    stage: str
    before: int
    reads: LayerVerdict
    kept: float
    kept_at_best: float


@dataclass(frozen=True)
class Verdict:
    """Whether key norms stand for attention.

    Attributes:
        prompts: How many it rests on.
        layers: Layer by layer.
        cuts: At ViTCoP's two default cuts.
        advice: ``"key_norm"`` (keep the default), ``"layers"`` (cut before ``layers_instead``), or ``"attention"``.
        layers_instead: The nearest layers at whose cuts the norm does stand for attention; None where the default is
            good or none are near.
        best: Up to three layers with the most negative correlation of those with direction ``"inverse"``.
    """

    prompts: int
    layers: tuple[LayerVerdict, ...]
    cuts: tuple[CutVerdict, CutVerdict]
    advice: Literal["key_norm", "layers", "attention"]
    layers_instead: tuple[int, int] | None
    best: tuple[int, ...]

    @property
    def text(self) -> str:
        """The verdict in sentences, a paragraph each on layers, cuts and advice."""
        count = "1 prompt was" if self.prompts == 1 else f"{self.prompts} prompts were"
        few = f"Only {count} looked at; the spread says little. " if self.prompts < FEW else ""
        return "\n\n".join(
            [
                few + " ".join(_about_layers(self.layers)),
                " ".join(_about_cut(cut) for cut in self.cuts),
                _advice(self),
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain data, the text with it."""
        thresholds = {"strong": STRONG, "clear": CLEAR, "agreement": AGREEMENT}
        return asdict(self) | {"thresholds": thresholds, "text": self.text}


def judge(analysis: Analysis) -> Verdict:
    """Return what the rank correlations of an analysis come to."""
    values = analysis.of("correlation")
    layers = tuple(_judge_layer(layer, values[:, layer]) for layer in range(analysis.num_layers))
    kept, best = (np.median(analysis.of(name), axis=0) for name in ("kept", "kept_at_best"))
    second, third = (
        CutVerdict(stage, cut, layers[cut - 1], float(kept[cut - 1]), float(best[cut - 1]))
        for stage, cut in zip(("Stage II", "Stage III"), analysis.cuts, strict=True)
    )
    advice: Literal["key_norm", "layers", "attention"] = "key_norm"
    instead = None
    if {cut.reads.direction for cut in (second, third)} != {"inverse"}:
        instead = _layers_instead(layers, analysis.cuts)
        advice = "attention" if instead is None else "layers"
    inverse = sorted((each for each in layers if each.direction == "inverse"), key=lambda each: each.correlation)
    top = tuple(each.layer for each in inverse[:3])
    return Verdict(len(analysis.samples), layers, (second, third), advice, instead, top)


def _judge_layer(layer: int, values: np.ndarray[Any, np.dtype[np.float64]]) -> LayerVerdict:
    low, median, high = (float(each) for each in quartiles(values))
    agreement = float(np.mean(np.sign(values) == np.sign(median)))
    direction: Direction = "none"
    if abs(median) >= CLEAR and agreement >= AGREEMENT:
        direction = "inverse" if median < 0 else "direct"
    return LayerVerdict(layer, median, low, high, agreement, direction)


def _layers_instead(layers: tuple[LayerVerdict, ...], cuts: tuple[int, int]) -> tuple[int, int] | None:
    """Return the nearest pair of cut layers that read layers with the assumed direction."""
    reach = max(1, len(layers) // NEARBY)
    near = [
        [
            c
            for c in range(max(1, cut - reach), min(len(layers), cut + reach + 1))
            if layers[c - 1].direction == "inverse"
        ]
        for cut in cuts
    ]
    pairs = [(first, deep) for first in near[0] for deep in near[1] if first < deep]
    if not pairs:
        return None

    def distance(pair: tuple[int, int]) -> tuple[int, float]:
        moved = sum(abs(layer - cut) for layer, cut in zip(pair, cuts, strict=True))
        return moved, sum(layers[layer - 1].correlation for layer in pair)

    return min(pairs, key=distance)


def _about_layers(layers: tuple[LayerVerdict, ...]) -> list[str]:
    found = []
    for direction, group in groupby(layers, key=lambda each: each.direction):
        members = list(group)
        first, last = members[0].layer, members[-1].layer
        where = f"At layer {first}" if first == last else f"At layers {first}-{last}"
        median = float(np.median([each.correlation for each in members]))
        found.append(f"{where} {_MEANINGS[direction]} (median rank correlation {median:+.2f}).")
    return found


def _about_cut(cut: CutVerdict) -> str:
    reads = cut.reads
    return (
        f"{cut.stage} cuts before layer {cut.before}, by the norms of layer {reads.layer}: rank correlation "
        f"{reads.correlation:+.2f}, quartiles {reads.low:+.2f} and {reads.high:+.2f}, the sign the same for "
        f"{reads.agreement:.0%} of the prompts ({reads.strength}). The ninth of the tokens with the lowest norms holds "
        f"{cut.kept:.0%} of the attention there; a random ninth holds {float(KEPT):.0%}, the best ninth "
        f"{cut.kept_at_best:.0%}."
    )


def _advice(verdict: Verdict) -> str:
    caution = "Attention is not accuracy: measure answers with both before you settle."
    if verdict.advice == "key_norm":
        return f'Keep the default, ViTCoP(saliency="key_norm"): at both cuts the norm stands for attention. {caution}'
    wrong = " and ".join(cut.stage for cut in verdict.cuts if cut.reads.direction != "inverse")
    attention = (
        'ViTCoP(saliency="attention") ranks by attention itself; the cuts then depend on the question, and a reusable '
        "image prefix is no longer exact"
    )
    if verdict.layers_instead is not None:
        return (
            f"For {wrong} the norm does not stand for attention at the default layers. It does at "
            f"ViTCoP(layers={verdict.layers_instead}). Or else {attention}. {caution}"
        )
    best = ", ".join(map(str, verdict.best))
    where = (
        f"It does at other layers (best: {best}), too far from the cuts to move them there."
        if best
        else ("It does at no layer.")
    )
    return f"For {wrong} the norm does not stand for attention. {where} {attention}. {caution}"
