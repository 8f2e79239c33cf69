"""Norm of a token's keys (Equation 4): the smaller, the more important."""

import torch
from torch import Tensor

from vitcop_core.checks import check_floating
from vitcop_core.ops._library import accumulator, register


def key_norm(keys: Tensor) -> Tensor:
    """Return the L2 norm of each token's keys over all key-value heads together.

    ``w_i = sqrt(sum_g ||K_i^(g)||^2)``. Rotary position embedding turns keys without changing their length, so keys
    from before and after it give the same norm.

    Args:
        keys: ``[B, G, n, e]`` floating.

    Returns:
        ``[B, n]`` float32. No gradient flows through it.

    Raises:
        TypeError: ``keys`` is no floating tensor.
        ValueError: It has another number of dimensions.
    """
    check_floating("keys", keys, ("B", "G", "n", "e"))
    result: Tensor = torch.ops.vitcop.key_norm(keys.detach())
    return result


def _reference(keys: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(keys, dim=(1, 3), dtype=accumulator(keys))
    return norms.float()


def _fake(keys: Tensor) -> Tensor:
    return keys.new_empty((keys.shape[0], keys.shape[2]), dtype=torch.float32)


register("key_norm(Tensor keys) -> Tensor", _reference, _fake)
