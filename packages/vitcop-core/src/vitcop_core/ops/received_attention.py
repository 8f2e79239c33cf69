"""Saliency of patches from the attention that they receive, for towers without a CLS token."""

import math

import torch
from torch import Tensor

from vitcop_core.checks import check_finite, check_floating, check_rows
from vitcop_core.ops._library import accumulator, register, valid_tokens
from vitcop_core.ops.product import product

# Scores at hand at a time, 16 MiB of them: the attention matrix of an image of 16,384 patches would take gigabytes.
_BLOCK = 2**21


def received_attention(queries: Tensor, keys: Tensor, scale: float, *, lengths: Tensor | None = None) -> Tensor:
    """Return the attention that every token receives, averaged over heads and over the tokens that pay it.

    ``R_j = 1 / (H n) sum_h sum_i softmax_j(scale * q_hi . k_hj)``. It sums to 1 over a row. The matrix of attention is
    never there as a whole: beside the arguments, memory grows with n and not with its square.

    Args:
        queries: ``[B, H, n, e]`` floating, the queries of all tokens of one layer.
        keys: ``[B, H, n, e]`` floating, their keys.
        scale: Factor on the scores before the softmax.
        lengths: ``[B]`` int64, valid tokens of each row; None where all n are. Others neither pay nor receive.

    Returns:
        ``[B, n]`` float32, computed in float32 or better whatever the inputs are; 0 in padding. No gradient flows
        through it.

    Raises:
        TypeError: An argument is of the wrong type or dtype, or ``scale`` no number.
        ValueError: The shapes or devices disagree, or ``scale`` is not finite.
    """
    check_floating("keys", keys, ("B", "H", "n", "e"))
    check_floating("queries", queries, [*keys.shape], like=keys)
    factor = check_finite("scale", scale)
    check_rows(keys, lengths=lengths)
    result: Tensor = torch.ops.vitcop.received_attention(queries.detach(), keys.detach(), factor, lengths)
    return result


def _reference(queries: Tensor, keys: Tensor, scale: float, lengths: Tensor | None = None) -> Tensor:
    batch, heads, tokens, width = keys.shape
    valid = valid_tokens(keys[:, 0], lengths)
    total = torch.zeros((batch, tokens), dtype=accumulator(keys), device=keys.device)
    rows = max(1, min(tokens, _BLOCK // max(tokens, 1)))
    # Where a head is small there are several in a block, and units with all of their heads.
    pairs = max(1, _BLOCK // max(1, tokens * (tokens + 2 * width)))
    units, at_once = max(1, pairs // max(heads, 1)), max(1, min(heads, pairs))
    for unit in range(0, batch, units):
        own = slice(unit, unit + units)
        for head in range(0, heads, at_once):
            several = slice(head, head + at_once)
            wide = _masked(keys[own, several], valid[own]).mT
            for row in range(0, tokens, rows):
                part = slice(row, row + rows)
                asking = _masked(queries[own, several, part], valid[own, part]) * scale
                total[own] += _paid(asking, wide, valid[own], valid[own, part])
    mean = total / (heads * valid.sum(1, keepdim=True)).clamp(min=1)
    return mean.masked_fill(~valid, 0).float()


def _masked(states: Tensor, valid: Tensor) -> Tensor:
    """Return ``[B, H, n, e]`` in the accumulating dtype; 0 in padding, which may hold anything."""
    return states.to(accumulator(states)).masked_fill(~valid[:, None, :, None], 0)


def _paid(queries: Tensor, keys: Tensor, valid: Tensor, asks: Tensor) -> Tensor:
    """Return ``[B, n]``: what q queries pay to each of n keys, summed over heads and over the queries that ask.

    Args:
        queries: ``[B, H, q, e]``.
        keys: ``[B, H, e, n]``.
        valid: ``[B, n]`` bool.
        asks: ``[B, q]`` bool.
    """
    # One buffer from the scores to the weights: it is most of the memory that the operator takes.
    weights = product(queries, keys).masked_fill_(~valid[:, None, None], -math.inf)
    weights.sub_(weights.amax(-1, keepdim=True)).exp_()
    share = asks[:, None].to(weights.dtype) / weights.sum(-1)
    return product(share.unsqueeze(2), weights).sum(1).squeeze(1)


def _fake(queries: Tensor, keys: Tensor, scale: float, lengths: Tensor | None = None) -> Tensor:
    return keys.new_empty((keys.shape[0], keys.shape[2]), dtype=torch.float32)


register(
    "received_attention(Tensor queries, Tensor keys, float scale, Tensor? lengths=None) -> Tensor", _reference, _fake
)
