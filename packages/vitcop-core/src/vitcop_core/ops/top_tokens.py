"""The k most salient tokens, in sequence order."""

import math

import torch
from torch import Tensor

from vitcop_core.checks import check_flag, check_floating, check_int, check_rows
from vitcop_core.ops._library import register, row_counts, valid_tokens


def top_tokens(
    saliency: Tensor,
    k: int,
    *,
    smallest: bool = False,
    lengths: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Return indices of the k largest (or smallest) values of each row, ascending; ties go to the lower index.

    Args:
        saliency: ``[B, n]`` floating, compared in float32. NaN ranks last.
        k: Width of the result, from 1 to n.
        smallest: Keep the smallest values instead of the largest.
        lengths: ``[B]`` int64, valid tokens of each row; None where all n are.
        counts: ``[B]`` int64, how many tokens each row keeps, at most k; None for k. A row shorter than its count keeps
            all it has.

    Returns:
        ``[B, k]`` int64; n after the last index of a row that keeps fewer than k.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, a device or k does not fit.
    """
    check_floating("saliency", saliency, ("B", "n"))
    k = check_int("k", k, 1, saliency.shape[1])
    check_flag("smallest", smallest)
    check_rows(saliency, lengths=lengths, counts=counts)
    result: Tensor = torch.ops.vitcop.top_tokens(saliency.detach(), k, smallest, lengths, counts)
    return result


def _reference(
    saliency: Tensor, k: int, smallest: bool = False, lengths: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    values = saliency.float()
    worst = math.inf if smallest else -math.inf
    values = values.masked_fill(values.isnan() | ~valid_tokens(values, lengths), worst)
    # Padding comes last in a row, so the stable sort puts it behind valid tokens that are as bad.
    chosen = values.argsort(dim=1, descending=not smallest, stable=True)[:, :k]
    unused = torch.arange(k, device=values.device) >= row_counts(values, k, counts, lengths)
    return chosen.masked_fill(unused, saliency.shape[1]).sort(dim=1).values


def _fake(
    saliency: Tensor, k: int, smallest: bool = False, lengths: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    return saliency.new_empty((saliency.shape[0], k), dtype=torch.int64)


register(
    "top_tokens(Tensor saliency, int k, bool smallest=False, Tensor? lengths=None, Tensor? counts=None) -> Tensor",
    _reference,
    _fake,
)
