"""The numbers behind the figures, for every prompt, and as plain data for a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitcop_core import ViTCoP, default_layers
from vitcop_llava.tools.analysis.accuracy import Accuracy
from vitcop_llava.tools.analysis.observing import Observation, observe
from vitcop_llava.tools.analysis.statistics import (
    Floats,
    cumulative_share,
    effective_share,
    kept_attention,
    rank_correlation,
)

KEPT = Fraction(1, 9)
"""The share of tokens whose attention is compared: the command line's default budget, 64 of 576."""

MOST_POINTS = 2000
"""Points of a scatter plot; of more, every so many-th is taken."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt in numbers; arrays of ``[L]`` float64 have one for each layer.

    Attributes:
        tokens: Visual tokens.
        cls_curve: ``[101]``, share of the CLS attention that the top 0, 1, ... 100 % of a unit's tokens hold, mean over
            units.
        correlation: Rank correlation of key norms with the attention that the last prompt token pays.
        text_correlation: The same with that of all text after the last image.
        visual_share: Share of the last prompt token's attention that goes to visual tokens.
        effective_share: Over how large a share of the visual tokens it spreads, from 1 / n to 1.
        kept: Share of it that the ninth of the visual tokens with the smallest key norms holds.
        kept_at_best: What the ninth with most attention holds.
        cutoff: The cutoff distance that ``cutoff_distance="auto"`` finds, median over the units of the first image or
            clip; None where none was found.
    """

    tokens: int
    cls_curve: Floats
    correlation: Floats
    text_correlation: Floats
    visual_share: Floats
    effective_share: Floats
    kept: Floats
    kept_at_best: Floats
    cutoff: float | None = None


@dataclass(frozen=True, eq=False)
class Analysis:
    """What figures and verdict are made from.

    Attributes:
        num_layers: L, decoder layers.
        cuts: The layers before which ViTCoP's Stages II and III cut by default; they rank by the keys of the layer
            before.
        samples: One for each prompt.
        points: For the layer that each cut reads, ``[points, 2]`` float64: a token's key norm over the median of its
            prompt, and its attention as a multiple of an even share.
        heat: ``[L, rows, columns]`` float32, the last prompt token's attention over the first unit of the first prompt.
        accuracy: Answers by share of tokens, for Figure 2b; None where no questions were asked.
        has_cls: Whether the tower has a CLS token, whose attention then ranks patches.
    """

    num_layers: int
    cuts: tuple[int, int]
    samples: tuple[Sample, ...]
    points: dict[int, Floats]
    heat: NDArray[np.float32]
    accuracy: Accuracy | None = None
    has_cls: bool = True

    @property
    def signal(self) -> str:
        """What Stage I ranks patches by, in words."""
        return "CLS attention" if self.has_cls else "received attention"

    @property
    def cutoff(self) -> float | Literal["auto"]:
        """The cutoff distance that ViTCoP clusters by on such a tower, unless it is given another."""
        cutoff = ViTCoP(retention_ratio=KEPT).for_tower(has_cls=self.has_cls).cutoff_distance
        assert cutoff is not None  # for_tower fills it in
        return cutoff

    @property
    def found_cutoffs(self) -> Floats:
        """What ``cutoff_distance="auto"`` finds, for each sample that tells."""
        return np.array([sample.cutoff for sample in self.samples if sample.cutoff is not None])

    def of(self, name: str) -> Floats:
        """Return a statistic of every sample, by its name there: ``[samples, L]``, or ``[samples, 101]`` of
        ``cls_curve``.
        """
        return np.stack([getattr(sample, name) for sample in self.samples])

    def with_accuracy(self, accuracy: Accuracy) -> Analysis:
        """Return the same with Figure 2b."""
        return replace(self, accuracy=accuracy)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers of all figures, rounded to four digits after the point."""
        curve = dict(zip(("low", "median", "high"), quartiles(self.of("cls_curve")), strict=True))
        per_layer = {name: _rounded(self.of(name)) for name in ("visual_share", "effective_share")}
        proxy = ("correlation", "text_correlation", "kept", "kept_at_best")
        return {
            "layers": self.num_layers,
            "cuts": list(self.cuts),
            "prompts": len(self.samples),
            "visual_tokens": [sample.tokens for sample in self.samples],
            "vision_saliency": "cls" if self.has_cls else "received",
            "cutoff_distance": {"default": self.cutoff, "auto": _rounded(self.found_cutoffs)},
            "figure_2a": {
                "percent_of_tokens": list(range(len(curve["median"]))),
                **{name: _rounded(values) for name, values in curve.items()},
                "top_10_percent": _rounded(self.of("cls_curve")[:, 10]),
            },
            "figure_2b": None if self.accuracy is None else self.accuracy.as_json(),
            "figure_3a": {name: _rounded(self.of(name)) for name in proxy}
            | {"points": {str(layer): _rounded(points) for layer, points in self.points.items()}},
            "figure_4": per_layer,
            "figure_6": {
                "grid": list(self.heat.shape[1:]),
                "attention": _rounded(self.heat.reshape(len(self.heat), -1), 6),
            },
        }


def analyze(model: nn.Module, prompts: Iterable[Mapping[str, Any]]) -> Analysis:
    """Observe a model on prompts, one run each, and work out the numbers of Figures 2a, 3a, 4 and 6.

    Args:
        model: One that `prune` takes, unpruned; it is left as it was.
        prompts: The inputs of its forward, for one row or several; made one by one if they come from a generator.

    Raises:
        TypeError: As :func:`observe`.
        ValueError: As :func:`observe`; or there are no prompts, or too few layers for two cuts.
    """
    return summarize(seen for inputs in prompts for seen in observe(model, **inputs))


def summarize(observations: Iterable[Observation]) -> Analysis:
    """Return the numbers of what was observed of one model, one prompt after the other.

    Raises:
        ValueError: There are no observations, or they have too few layers for two cuts.
    """
    samples, first, cuts = list[Sample](), None, (0, 0)
    points: dict[int, list[Floats]] = {}
    for seen in observations:
        if first is None:
            first, cuts = seen, default_layers(len(seen.attention))
        samples.append(_sample(seen))
        for layer in {cut - 1 for cut in cuts}:
            points.setdefault(layer, []).append(_points(seen, layer))
    if first is None:
        raise ValueError("prompts must be at least one, got none")
    rows, columns = first.grid
    heat = first.attention[:, : rows * columns].reshape(-1, rows, columns)
    thinned = {layer: _thinned(np.concatenate(found)) for layer, found in sorted(points.items())}
    return Analysis(len(first.attention), cuts, tuple(samples), thinned, heat, has_cls=first.has_cls)


def quartiles(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return lower quartile, median and upper quartile over the first dimension."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    return low, median, high


def _sample(seen: Observation) -> Sample:
    keep = max(1, int(KEPT * seen.attention.shape[1]))
    return Sample(
        tokens=seen.attention.shape[1],
        cls_curve=np.mean([cumulative_share(unit) for unit in seen.cls_attention], axis=0),
        correlation=rank_correlation(seen.key_norms, seen.attention),
        text_correlation=rank_correlation(seen.key_norms, seen.text_attention),
        visual_share=seen.attention.sum(axis=1, dtype=np.float64),
        effective_share=effective_share(seen.attention),
        kept=kept_attention(seen.attention, seen.key_norms, keep),
        kept_at_best=kept_attention(seen.attention, -seen.attention, keep),
        cutoff=float(np.median(seen.cutoffs)) if seen.cutoffs else None,
    )


def _points(seen: Observation, layer: int) -> Floats:
    norms, attention = seen.key_norms[layer].astype(np.float64), seen.attention[layer].astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    return np.stack([norms / max(float(np.median(norms)), tiny), attention / max(attention.mean(), tiny)], axis=1)


def _thinned(points: Floats) -> Floats:
    return points[:: -(-len(points) // MOST_POINTS)]


def _rounded(values: NDArray[Any], digits: int = 4) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()
