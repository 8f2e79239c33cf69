"""SparseVLM's raters and recycling, on tensors: which text rates the image, and what becomes of dropped tokens."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vitcop_core import ops
from vitcop_core.methods._vision import take_patches as take
from vitcop_core.ops._library import row_counts, valid_tokens
from vitcop_core.ops.co_prune import group_means
from vitcop_core.ops.vic import nearest_center, pairwise_distances
from vitcop_core.tokens import PromptView


def recycled_from(dropped: int) -> tuple[int, int]:
    """Return how many of the dropped tokens are recycled, and into how many: ``floor(.3 d) + 1`` and a tenth of that,
    plus 1.

    None where nothing was dropped. :func:`recycle` does the same arithmetic on the device.
    """
    if dropped < 1:
        return 0, 0
    candidates = 3 * dropped // 10 + 1
    return candidates, candidates // 10 + 1


def find_raters(prompt: PromptView) -> Tensor:
    """Return the text tokens that are more relevant to the image than text is on average.

    ``M = V T^t``, unscaled, softmax over the text, mean over the visual tokens; raters are above the mean. Where all
    text is equally relevant (one token always is) none is, and all of it rates.

    Args:
        prompt: Embeddings.

    Returns:
        ``[B, t]`` bool.
    """
    visual, text = prompt.visual.detach(), prompt.text.detach()
    seen, words = valid_tokens(visual, prompt.lengths), valid_tokens(text, prompt.text_lengths)
    scores = ops.product(text, visual.mT).masked_fill(~words.unsqueeze(2), -math.inf).softmax(1)
    scores = scores.masked_fill(~(words.unsqueeze(2) & seen.unsqueeze(1)), 0)
    # Rounded so that equal relevance is equal here, whatever the order of the sums was; its mean is then exact.
    relevance = (scores.sum(2) / seen.sum(1, keepdim=True).clamp(min=1)).float().to(scores.dtype)
    mean = relevance.sum(1, keepdim=True) / words.sum(1, keepdim=True).clamp(min=1)
    raters = (relevance > mean) & words
    return torch.where(raters.any(1, keepdim=True), raters, words)


class Recycled(NamedTuple):
    """Tokens made of dropped ones.

    Attributes:
        hidden: ``[B, c, d]``, the mean of each cluster; 0 in a row that has fewer.
        center: ``[B, c]`` int64, the token at the center of each, by density peak in descending order; n after the
            last of a row.
    """

    hidden: Tensor
    center: Tensor


def recycle(hidden: Tensor, score: Tensor, kept: Tensor, lengths: Tensor | None, dropped: int) -> Recycled:
    """Merge the best of the dropped tokens into a few, by density-peak clustering on their nearest neighbors.

    Args:
        hidden: ``[B, n, d]``.
        score: ``[B, n]``, by which tokens were kept.
        kept: ``[B, k]`` int64, n after the last of a row.
        lengths: ``[B]`` int64, valid tokens of each row; None where all n are.
        dropped: The most tokens that any row drops, or more; at least 1. Sizes follow from it.

    Returns:
        As many tokens as :func:`recycled_from` says for the most, of each row those that it says for its own.
    """
    size = hidden.shape[1]
    marks = torch.zeros((hidden.shape[0], size + 1), dtype=torch.bool, device=hidden.device).scatter(1, kept, True)
    lost = valid_tokens(hidden, lengths) & ~marks[:, :size]
    lost_count = lost.sum(1)
    anything = (lost_count > 0).to(torch.int64)
    counts = torch.div(3 * lost_count, 10, rounding_mode="floor") + anything
    centers = torch.div(counts, 10, rounding_mode="floor") + anything
    most, most_centers = recycled_from(dropped)
    index = ops.top_tokens(score.masked_fill(~lost, -math.inf), most, counts=counts)
    chosen = take(hidden, index)
    labels, peaks = _density_peaks(chosen, counts, centers, most_centers)
    center = index.gather(1, peaks.clamp(max=most - 1)).masked_fill(peaks == most, size)
    return Recycled(group_means(chosen, labels, most_centers), center)


def _density_peaks(hidden: Tensor, lengths: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Cluster around the tokens that are dense and far from denser ones.

    Distance ``d_ij = |x_i - x_j| / sqrt(d)``; density ``exp(-mean of d_ij^2 over the c nearest, itself among them)``,
    of which equal ones count as denser at the lower index; delta, the least distance to a denser token, or the row's
    greatest where there is none. The tokens of largest ``delta * density`` are centers, and each other token joins the
    nearest of them, the more important one on ties.

    Args:
        hidden: ``[B, m, d]``.
        lengths: ``[B]`` int64, valid tokens of each row.
        counts: ``[B]`` int64, c of each row.
        most: The largest c.

    Returns:
        ``[B, m]`` int64 labels, ``most`` in padding; ``[B, c]`` int64 centers, m after a row's last.
    """
    size = hidden.shape[1]
    place = torch.arange(size, device=hidden.device).expand(hidden.shape[:2])
    valid = valid_tokens(hidden, lengths)
    pairs = valid.unsqueeze(2) & valid.unsqueeze(1)
    distances = pairwise_distances(hidden.detach(), valid) / math.sqrt(hidden.shape[2])
    nearest = distances.square().masked_fill(~pairs, math.inf).sort(dim=2).values[:, :, :most]
    in_mean = torch.arange(nearest.shape[2], device=hidden.device) < counts.view(-1, 1, 1)
    mean = nearest.masked_fill(~in_mean, 0).sum(2) / counts.clamp(min=1).unsqueeze(1)
    density = (-mean).exp().float()
    distances = distances.float()

    order = density.masked_fill(~valid, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, place)
    is_denser = (rank.unsqueeze(1) < rank.unsqueeze(2)) & pairs
    greatest = distances.masked_fill(~pairs, 0).amax(dim=(1, 2)).unsqueeze(1)
    delta = distances.masked_fill(~is_denser, math.inf).amin(2)
    delta = torch.where(delta.isinf(), greatest, delta)
    importance = (delta * density).masked_fill(~valid, -math.inf)
    peaks = importance.argsort(dim=1, descending=True, stable=True)[:, :most]
    unused = torch.arange(most, device=peaks.device) >= row_counts(peaks, most, counts, lengths)
    peaks = peaks.masked_fill(unused, size)

    # A center stays in its own cluster, also where another center is its duplicate.
    labels = nearest_center(distances, peaks)
    names = torch.arange(most, device=peaks.device).expand_as(peaks)
    labels = torch.nn.functional.pad(labels, (0, 1)).scatter(1, peaks, names)[:, :size]
    return labels.masked_fill(~valid, most), peaks
