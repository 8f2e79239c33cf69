"""Saliency of patches from the CLS token's attention (Equation 1)."""

import torch
from torch import Tensor

from vitcop_core.checks import check_finite, check_floating
from vitcop_core.ops._library import register


def cls_saliency(query_cls: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Return the attention that the CLS token pays to every token, summed over heads.

    ``S_i = sum_h softmax_i(scale * q_h . k_hi)``. Only this one row of the attention matrix is needed, so the vision
    tower may keep its fused attention.

    Args:
        query_cls: ``[B, H, e]`` floating, the CLS token's query in every head.
        keys: ``[B, H, n, e]`` floating, the keys of all tokens, CLS among them: the softmax runs over all n.
        scale: Factor on the scores before the softmax.

    Returns:
        ``[B, n]`` float32, computed in float32 whatever the inputs are. No gradient flows through it.

    Raises:
        TypeError: An argument is no floating tensor, or ``scale`` no number.
        ValueError: The shapes or devices disagree, or ``scale`` is not finite.
    """
    check_floating("keys", keys, ("B", "H", "n", "e"))
    batch, heads, _, width = keys.shape
    check_floating("query_cls", query_cls, (batch, heads, width), like=keys)
    factor = check_finite("scale", scale)
    result: Tensor = torch.ops.vitcop.cls_saliency(query_cls.detach(), keys.detach(), factor)
    return result


def _reference(query_cls: Tensor, keys: Tensor, scale: float) -> Tensor:
    # A product and a sum, not a matmul: those may run in TF32 or, under autocast, in half precision.
    scores = (keys.float() * (query_cls.float() * scale).unsqueeze(2)).sum(-1)
    return scores.softmax(-1).sum(1)


def _fake(query_cls: Tensor, keys: Tensor, scale: float) -> Tensor:
    return keys.new_empty((keys.shape[0], keys.shape[2]), dtype=torch.float32)


register("cls_saliency(Tensor query_cls, Tensor keys, float scale) -> Tensor", _reference, _fake)
