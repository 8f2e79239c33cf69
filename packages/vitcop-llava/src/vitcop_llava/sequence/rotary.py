"""Rotary positions: new ones after a cut, and rows of a layer's attention from rotated queries and keys.

A few rows are all that attention-based saliency needs, and come out the same under any attention backend. Scores are
computed as the operators compute theirs, whatever autocast and the precision of matrix products are set to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitcop_core import ops


def first_position(position_ids: Tensor, padding: Tensor | None) -> Tensor:
    """Return the position id of each row's first token, ``[B, 1]`` int64.

    Args:
        position_ids: ``[B, P]`` int64.
        padding: ``[B, P]`` bool, False where a slot is padding; None for no padding.
    """
    if padding is None:
        return position_ids[:, :1]
    return position_ids.gather(1, padding.to(torch.uint8).argmax(dim=1, keepdim=True))


def packed(first: Tensor, padding: Tensor | None, slots: int) -> Tensor:
    """Return ``[B, slots]`` int64: positions that count from ``first`` [B, 1] on, padding left out.

    Args:
        first: The position of each row's first token.
        padding: ``[B, slots]`` bool, False where a slot is padding; None for no padding.
        slots: How many.
    """
    if padding is None:
        return first + torch.arange(slots, device=first.device)
    return first + (padding.cumsum(1) - 1).clamp(min=0)


def by_token(position_ids: Tensor) -> Tensor:
    """Return ``[B or 1, L]`` position ids of one axis as they are; ``[A, B, L]`` of several as ``[B, L, 3]``.

    Of four axes the first numbers tokens, for samples that are packed into one row, and turns nothing.
    """
    return position_ids if position_ids.ndim < 3 else position_ids[-3:].movedim(0, -1)


def by_axis(position_ids: Tensor) -> Tensor:
    """Return position ids in the form in which a model takes them: the reverse of `by_token`."""
    return position_ids if position_ids.ndim < 3 else position_ids.movedim(-1, 0)


# Rows of attention in memory at a time: each takes H S numbers for every row of the batch.
_ROWS = 64


def row_attention(
    queries: Tensor, keys: Tensor, places: Tensor, weights: Tensor, *, scale: float, padding: Tensor | None
) -> Tensor:
    """Return the softmaxed attention of some tokens, mean over heads and weighted mean over them.

    Args:
        queries: ``[B, H, R, e]``, rotated.
        keys: ``[B, G, S, e]``, rotated.
        places: ``[B, R]`` int64, where among the keys each query's own stands: it attends to nothing after that.
        weights: ``[B, R]`` float32; what has none may be anything.
        scale: Factor of the scores.
        padding: ``[B, S]`` bool, False where nothing is attended to; None for no padding.

    Returns:
        ``[B, S]`` float32; 0 in a row of the batch without weights.
    """
    groups = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1).transpose(2, 3)
    number, total = torch.arange(keys.shape[2], device=keys.device), weights.new_zeros(())
    for start in range(0, places.shape[1], _ROWS):
        part = slice(start, start + _ROWS)
        unseen = number > places[:, None, part, None]
        if padding is not None:
            unseen = unseen | ~padding[:, None, None]
        scores = ops.product(queries[:, :, part], groups) * scale
        rows = scores.masked_fill(unseen, float("-inf")).softmax(dim=-1).mean(dim=1)
        weight = weights[:, part, None]
        total = total + (rows * weight).masked_fill(weight == 0, 0).sum(dim=1)
    return (total / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)).float()
