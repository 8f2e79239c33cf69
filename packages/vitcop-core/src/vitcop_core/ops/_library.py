"""Registration of the ``vitcop`` operators.

Each operator has its schema, its shape-only fake and its pure-torch reference in Python. The reference is registered as
``CompositeExplicitAutograd``, the default of every device, so a kernel that vitcop-cuda registers for CPU or CUDA under
the same schema takes precedence in the dispatcher, and no Python asks which one there is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("vitcop", "FRAGMENT")

#: The reference of each operator by name, for checking kernels against it.
REFERENCES: dict[str, Callable[..., Any]] = {}


def register(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator.

    Args:
        schema: ``name(arguments) -> results`` in PyTorch's schema language. No argument is keyword-only: PyTorch does
            not allow that of tensors where there is a gradient.
        reference: Computes it on any device, without waiting for the device.
        fake: Allocates results of the right shapes and dtypes.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vitcop::{name}", fake, lib=LIBRARY)
    REFERENCES[name] = reference


def accumulator(tensor: Tensor) -> torch.dtype:
    """Return the dtype that sums run in before they are rounded to float32.

    float64 wherever the device has it: rounded to float32, a sum then no longer depends on the order of its terms, so
    tokens that tie in exact arithmetic tie here, on every device and for every batch; and TF32 and autocast, which act
    on float32 and less, cannot reach it.
    """
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def valid_tokens(tensor: Tensor, lengths: Tensor | None) -> Tensor:
    """Return ``[B, n]`` bool from the first two extents of ``tensor``: which tokens come before their row's length."""
    place = torch.arange(tensor.shape[1], device=tensor.device).expand(tensor.shape[:2])
    if lengths is None:
        return torch.ones_like(place, dtype=torch.bool)
    return place < lengths.unsqueeze(1)


def row_counts(tensor: Tensor, most: int, counts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return ``[B, 1]`` int64: how many outputs each row has, at most its ``counts``, its ``lengths`` and ``most``."""
    result = torch.full((tensor.shape[0], 1), most, dtype=torch.int64, device=tensor.device)
    for bound in (counts, lengths):
        if bound is not None:
            result = torch.minimum(result, bound.unsqueeze(1)).clamp(min=0)
    return result
