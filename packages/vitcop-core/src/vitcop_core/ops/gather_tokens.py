"""Rows of several tensors at the same places: hidden states, position ids and masks of the survivors in one pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcop_core.checks import check_integral, check_sequence, check_tensor, require
from vitcop_core.ops._library import LIBRARY, register


def gather_tokens(tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Gather the same tokens of every tensor.

    Args:
        tensors: Each ``[B, n, ...]`` or ``[1, n, ...]`` of any dtype; one row stands for all. Gradients flow to those
            that are floating.
        index: ``[B, k]`` int64. A place outside ``[0, n)``, such as the n of an unused output, gives zeros.

    Returns:
        For each tensor ``[B, k, ...]``, contiguous, of its own dtype.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: There is not a tensor, or a shape or device does not fit.
    """
    check_integral("index", index, ("B", "k"))
    check_sequence("tensors", tensors)
    require(len(tensors) > 0, "tensors", "at least one tensor", 0)
    for place, tensor in enumerate(tensors):
        name, tokens = f"tensors[{place}]", "n" if place == 0 else tensors[0].shape[1]
        rest = ["..."] * (getattr(tensor, "ndim", 2) - 2)
        check_tensor(name, tensor, ("B", tokens, *rest), like=index)
        rows = tensor.shape[0]
        require(rows == 1 or rows == index.shape[0], name, f"of 1 or {index.shape[0]} rows", rows)
    result: list[Tensor] = torch.ops.vitcop.gather_tokens(list(tensors), index)
    return result


def _spread(index: Tensor, like: Tensor) -> Tensor:
    """Return ``index`` [B, k] shaped to gather or scatter tokens of ``like`` [1 or B, n, ...]."""
    return index.view(*index.shape, *[1] * (like.dim() - 2)).expand(*index.shape, *like.shape[2:])


def _gather(tensor: Tensor, index: Tensor) -> Tensor:
    tokens = tensor.shape[1]
    # One token of zeros behind the last, for places that are none.
    room = torch.cat([tensor, tensor.new_zeros((tensor.shape[0], 1, *tensor.shape[2:]))], 1)
    places = torch.where((index >= 0) & (index < tokens), index, tokens)
    return room.expand(index.shape[0], *room.shape[1:]).gather(1, _spread(places, tensor)).contiguous()


def _reference(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    return [_gather(tensor, index) for tensor in tensors]


def _fake(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    return [tensor.new_empty((*index.shape, *tensor.shape[2:])) for tensor in tensors]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, index = inputs
    ctx.save_for_backward(index)
    ctx.shapes = [tuple(tensor.shape) for tensor in tensors]


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[list[Tensor | None], None]:
    (index,) = ctx.saved_tensors
    found = zip(ctx.shapes, grads, strict=True)
    return [None if grad is None else _scatter(shape, grad, index) for shape, grad in found], None


def _scatter(shape: tuple[int, ...], grad: Tensor, index: Tensor) -> Tensor:
    """Return the gradient of a tensor of ``shape`` whose tokens at ``index`` have ``grad``."""
    rows, tokens = shape[:2]
    places = torch.where((index >= 0) & (index < tokens), index, tokens)
    spread = grad.new_zeros((grad.shape[0], tokens + 1, *shape[2:])).scatter_add(1, _spread(places, grad), grad)
    return spread[:, :tokens].sum(0, keepdim=True) if rows == 1 else spread[:, :tokens]


register("gather_tokens(Tensor[] tensors, Tensor index) -> Tensor[]", _reference, _fake)
torch.library.register_autograd("vitcop::gather_tokens", _backward, setup_context=_setup_context, lib=LIBRARY)
