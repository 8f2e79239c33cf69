"""What a cut sees, and what it decides.

A method reads one of the views and returns a selection; the model adapter gathers what was selected. In the shapes, B
is the batch, C the units of one call, n or m tokens, H query heads, G key-value heads, e the width of a head, d and d_v
the hidden widths of the language model and the vision tower, k and c the tokens and the cluster centers chosen, t text
tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from vitcop_core.checks import check_finite, check_int, check_tensor, check_tuple, require


def places_of(mask: Tensor, count: int) -> Tensor:
    """Return where the first ``count`` True of each row are, then the others: ``[B, n]`` bool to ``[B, count]`` int64.

    Both are ascending.
    """
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


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
        appended: ``[B, c, d]``, hidden states of c more tokens, which follow the last of the n in the sequence (text
            between it and a token that was kept before it stays where it is). None where none are made.
        appended_at: ``[B, c]`` int64, which of the n tokens each of those is named after; n, after the last one, in
            rows that have fewer than c. None as ``appended``.
    """

    index: Tensor
    hidden: Tensor | None = None
    is_merged: Tensor | None = None
    slot: Tensor | None = None
    appended: Tensor | None = None
    appended_at: Tensor | None = None


def _not_shown(*args: object) -> NoReturn:
    raise NotImplementedError("this view of the model does not offer what the method asks for")


@dataclass(frozen=True, eq=False)
class VisionView:
    """What a cut before the language model sees: C units of m patches each, of which it may choose n or fewer.

    Where the model pools its features before the projector, as it does for frames of video, the m "patches" are what it
    pools to, and the vision layer has M = m * pool ** 2 patches (or a few more, in lines that pooling leaves out).
    Likewise where the projector makes one token of each square of patches. Where the model mixes its features after the
    projector, by interpolation, the m are the tokens that come out, and ``hidden`` has the language model's width.

    Attributes:
        query_cls: ``[C, H, e]`` the CLS token's query, in the layer whose output is the selected feature; None of a
            tower without a CLS token.
        keys: ``[C, H, 1 + M, e]`` that layer's keys, CLS first; M is m unless patches are pooled. ``[C, H, M, e]`` of a
            tower without a CLS token; ``[C, 0, m, 0]`` for a method that reads projected features.
        scale: What scores are multiplied by before the softmax, usually ``e ** -0.5``.
        positions: ``[C, m, 2]`` float32, (row / rows, column / columns) on the unit's own grid.
        hidden: ``[C, m, d_v]`` the selected features, before the projector. ``[C, m, d]`` the tokens as they would
            enter the language model, where the model mixes them after the projector, and for a method that reads
            projected features (:attr:`Method.needs_projected`).
        eligible: ``[C, n]`` int64 ascending, the patches that the model uses of each unit (the others are padding of
            the picture); anything after a unit's own number. None where it uses all m. The softmax over a unit's
            patches still runs over all of them, as it does in the tower.
        lengths: ``[C]`` int64, how many of ``eligible`` are each unit's own, which may be none; None where all are.
        hidden_cls: ``[C, d_v]`` the CLS token's state in the same layer as ``hidden``, which the model itself leaves
            out, projected where ``hidden`` is; None of a tower without one, and where no method that may want it is
            shown the view.
        pool: Side of the square of the vision layer's patches that each of the m stands for.
        grid: Rows and columns of the vision layer's patches; None where the patches of a square follow each other.
        frames: How many units each clip has, where the units are frames of video in order; None where they are not.
        queries: Gives that layer's queries of all tokens that ``keys`` are of, in the same shape. They are projected
            only when called.
        entry_keys: Gives the keys that the first layer of the language model makes of features in front of the
            projector, each by itself: ``[C, k, d_v]`` to ``[C, G, k, e]``, not rotated.
        attended_keys: ``[C, H, M, e]``, the keys as the layer attends to them, where it rotates queries and keys by
            position; None where they are ``keys``.
        sizes: ``[C]`` int64, how many of the vision layer's M patches each unit has, where units are of different
            sizes; None where all have M.
        mix: Gives ``[C, m, ...]`` from ``[C, M, ...]`` floating: what belongs to the vision layer's patches, averaged
            for each token by the weights with which the model interpolates. None where it does not.

    Raises:
        TypeError: A number is not one, or ``hidden`` no tensor.
        ValueError: A number is out of range, or the frames are not the C units.
    """

    query_cls: Tensor | None
    keys: Tensor
    scale: float
    positions: Tensor
    hidden: Tensor
    eligible: Tensor | None = None
    lengths: Tensor | None = None
    hidden_cls: Tensor | None = None
    pool: int = 1
    grid: tuple[int, int] | None = None
    frames: tuple[int, ...] | None = None
    queries: Callable[[], Tensor] = _not_shown
    entry_keys: Callable[[Tensor], Tensor] = _not_shown
    attended_keys: Tensor | None = None
    sizes: Tensor | None = None
    mix: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that grid and frames fit."""
        check_finite("scale", self.scale)
        check_tensor("hidden", self.hidden, ("C", "m", "d_v"))
        check_int("pool", self.pool, 1)
        for name, counts in (("grid", self.grid), ("frames", self.frames)):
            if counts is not None:
                check_tuple(name, counts, "integers")
                for count in counts:
                    check_int(name, count, 1)
        require(self.grid is None or len(self.grid) == 2, "grid", "rows and columns", self.grid)
        units = self.hidden.shape[0]
        fits = self.frames is None or sum(self.frames) == units
        require(fits, "frames", f"those of {units} units", self.frames)

    @property
    def leading(self) -> int:
        """Tokens of the tower before its patches: 1 where it has a CLS token, else 0."""
        return 0 if self.query_cls is None else 1

    @property
    def patch_keys(self) -> Tensor:
        """``[C, H, M, e]``, the keys without that of CLS."""
        return self.keys[:, :, self.leading :]

    def pooled(self, values: Tensor) -> Tensor:
        """Average what belongs to the vision layer's patches over those of each token.

        Args:
            values: ``[C, M, ...]`` floating, without CLS.

        Returns:
            ``[C, m, ...]``; ``values`` itself where nothing is pooled, float32 or wider where something is.
        """
        if self.pool == 1 and self.mix is None:
            return values
        values, side = values.float() if values.element_size() < 4 else values, self.pool
        if self.mix is not None:
            return self.mix(values)
        if self.grid is None:
            laid = values.unflatten(1, (-1, 1, side**2))
            parts = [laid[:, :, :, number] for number in range(side**2)]
        else:
            rows, columns = (extent // side for extent in self.grid)
            laid = values.unflatten(1, self.grid)[:, : rows * side, : columns * side]
            parts = [laid[:, down::side, across::side] for down in range(side) for across in range(side)]
        total: Tensor = parts[0]
        for part in parts[1:]:  # one after the other: what a reduction gives may depend on how many units there are
            total = total + part
        return total.div(side**2).flatten(1, 2)

    def key_features(self) -> Tensor:
        """Return the tokens' keys, heads side by side, ``[C, m, H * e]``."""
        return self.pooled(self.patch_keys.transpose(1, 2).flatten(2))


@dataclass(frozen=True, eq=False)
class VisionSelection:
    """The tokens that enter the language model.

    Attributes:
        index: ``[C, keep]`` int64 ascending, among the m patches; m after the last one of a unit that keeps fewer. The
            i-th output takes the placeholder of the i-th of them; without ``hidden`` it is that patch.
        clusters: The clusters of the kept tokens, labeled from 0 within each unit, or within each of ``spans``; None
            where there are none.
        saliency: ``[C, m]`` float32, what they were chosen by; larger is more important.
        hidden: ``[C, keep, d_v]``, the features that go through the projector, where they are not just those of the
            patches at ``index``; 0 after a unit's last. None where they are.
        counts: ``[C]`` int64, how many each unit keeps, where the method shared a clip's tokens out among its frames by
            what they show; None where it kept what it was told.
        spans: How many units that follow each other share their clusters, span by span; None where none do.
        cutoff: The cutoff distance that they were clustered by: a number, or ``[groups]`` float32 where one was found
            for each unit or span. None where nothing was clustered by one.
        merge: How ``hidden`` was made: takes ``[C, m, d]`` of any width and gives ``[C, keep, d]``. What a model has
            beside the features of the same patches, as Qwen3-VL, is reduced by it. None where ``hidden`` is, or where
            it was made of other things; then what stands beside it is that of the patches at ``index``.
    """

    index: Tensor
    clusters: Clusters | None
    saliency: Tensor
    hidden: Tensor | None = None
    counts: Tensor | None = None
    spans: tuple[int, ...] | None = None
    cutoff: float | Tensor | None = None
    merge: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class PromptView:
    """The prompt as it enters the first layer: visual tokens, and the text after the last of them.

    Attributes:
        visual: ``[B, n, d]`` embeddings of the visual tokens that enter.
        lengths: ``[B]`` int64, the valid ones of each row, which come first; None where all n are.
        text: ``[B, t, d]`` embeddings of what follows the last visual token; of a prompt that ends with it, that token.
        text_lengths: ``[B]`` int64, the valid ones of each row, which come first; None where all t are.
    """

    visual: Tensor
    lengths: Tensor | None
    text: Tensor
    text_lengths: Tensor | None


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
            before the cut, averaged over heads. Like all that follow it is computed only when called, in float32, by a
            softmax over everything that the token attends to.
        own_attention: Gives the same for the layer that the cut stands before, as it would be on the uncut sequence:
            of its own input norm, query and key projections and rotary positions.
        attention_of: Takes ``[B, t]`` bool, some of the text tokens in :attr:`PromptView.text`, and gives ``[B, n]``
            the attention that they pay to each visual token in the layer before the cut, averaged over heads and over
            them; 0 in a row without any.
        prompt: Gives the prompt as it entered the first layer.
        notes: What the method's earlier cuts of the same prefill wrote down for its later ones.
    """

    hidden: Tensor
    keys: Tensor
    labels: Tensor | None
    num_clusters: int
    lengths: Tensor | None
    attention: Callable[[], Tensor]
    own_attention: Callable[[], Tensor] = _not_shown
    attention_of: Callable[[Tensor], Tensor] = _not_shown
    prompt: Callable[[], PromptView] = _not_shown
    notes: dict[str, Tensor] = field(default_factory=dict)
