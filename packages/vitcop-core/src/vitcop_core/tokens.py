"""What a cut sees, and what it decides.

A method reads one of the views and returns a selection; the model adapter gathers what was selected. In the shapes, B
is the batch, C the units of one call, n or m tokens, H query heads, G key-value heads, e the width of a head, d and d_v
the hidden widths of the language model and the vision tower, k and c the tokens and the cluster centers chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Clusters(NamedTuple):
    """Tokens grouped by density-peak clustering.

    Attributes:
        labels: ``[B, n]`` int64, the cluster of each token, from 0; -1 in padding.
        centers: ``[B, c]`` int64, the token at the center of each cluster; n where a row has fewer.
        density: ``[B, n]`` float32, the local density of Equation 2; 0 in padding.
        distance: ``[B, n]`` float32, the distance to the nearest denser token nearby, Equation 3; inf where there is
            none, 0 in padding.
        importance: ``[B, n]`` float32, density times distance; inf where the distance is, 0 in padding.
    """

    labels: Tensor
    centers: Tensor
    density: Tensor
    distance: Tensor
    importance: Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """The tokens that a cut leaves.

    Attributes:
        index: ``[B, k]`` int64 ascending, the place among the n tokens at which each output stands; n, after the last
            output, in rows that keep fewer than k.
        hidden: ``[B, k, d]`` the outputs' hidden states where some were merged; None where all are as they were.
        is_merged: ``[B, k]`` bool, whether an output stands for a group (also a group of one); None as ``hidden``.
        slot: ``[B, n]`` int64, the output that each token went into; k in padding. None as ``hidden``.
    """

    index: Tensor
    hidden: Tensor | None = None
    is_merged: Tensor | None = None
    slot: Tensor | None = None


@dataclass(frozen=True, eq=False)
class VisionView:
    """What a cut before the language model sees: C units of m patches each, of which it may choose n or fewer.

    Attributes:
        query_cls: ``[C, H, e]`` the CLS token's query, in the layer whose output is the selected feature.
        keys: ``[C, H, 1 + m, e]`` that layer's keys, CLS first.
        scale: What scores are multiplied by before the softmax, usually ``e ** -0.5``.
        positions: ``[C, m, 2]`` float32, (row / rows, column / columns) on the unit's own grid.
        hidden: ``[C, m, d_v]`` the selected features, before the projector.
        eligible: ``[C, n]`` int64 ascending, the patches that the model uses of each unit (the others are padding of
            the picture); anything after a unit's own number. None where it uses all m. The softmax over a unit's
            patches still runs over all of them, as it does in the tower.
        lengths: ``[C]`` int64, how many of ``eligible`` are each unit's own, which may be none; None where all are.
    """

    query_cls: Tensor
    keys: Tensor
    scale: float
    positions: Tensor
    hidden: Tensor
    eligible: Tensor | None = None
    lengths: Tensor | None = None


@dataclass(frozen=True, eq=False)
class VisionSelection:
    """The tokens that enter the language model.

    Attributes:
        index: ``[C, keep]`` int64 ascending, among the m patches; m after the last one of a unit that keeps fewer.
        clusters: The clusters of the kept tokens, labelled from 0 within each unit; None where there are none.
        saliency: ``[C, m]`` float32, what they were chosen by; larger is more important.
    """

    index: Tensor
    clusters: Clusters | None
    saliency: Tensor


@dataclass(frozen=True, eq=False)
class DecoderView:
    """What a cut inside the language model sees: the visual tokens of B samples, nothing else.

    Attributes:
        hidden: ``[B, n, d]`` the residual stream.
        keys: ``[B, G, n, e]`` the keys of the layer before the cut.
        labels: ``[B, n]`` int64, the cluster of each token, over the sample: each unit's labels are offset by the
            clusters of the units before it. -1 in padding. None without clusters.
        num_clusters: The largest number of clusters of a row; 0 without clusters.
        lengths: ``[B]`` int64, the valid tokens of each row, which come first; None where all n are.
        attention: Gives ``[B, n]``, the attention that the last prompt token pays to each visual token in the layer
            before the cut, averaged over heads. Computed only when called.
    """

    hidden: Tensor
    keys: Tensor
    labels: Tensor | None
    num_clusters: int
    lengths: Tensor | None
    attention: Callable[[], Tensor]
