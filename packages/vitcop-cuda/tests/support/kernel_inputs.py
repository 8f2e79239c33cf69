"""What a cross-check case is made of: reproducible random tensors, and tensors that lie in memory in unusual ways."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Arguments = tuple[Any, ...]


class Draw:
    """Random tensors of one dtype, the same in every run.

    Args:
        seed: Of the generator.
        dtype: Of the floating tensors.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def normal(self, *shape: int, scale: float = 1.0, around: float = 0.0) -> Tensor:
        return (around + scale * torch.randn(shape, generator=self.generator)).to(self.dtype)

    def lattice(self, *shape: int, steps: int = 2) -> Tensor:
        """Small integers: exact in every dtype, and full of ties."""
        return torch.randint(-steps, steps + 1, shape, generator=self.generator).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def grid(self, rows: int, side: int, tokens: int) -> Tensor:
        """Positions of the first ``tokens`` cells of a square grid, the same for all rows: expanded, not copied."""
        cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))[:tokens]
        return (cells.float() / side).expand(rows, tokens, 2)


@dataclass(frozen=True)
class Case:
    """One call of one operator.

    Attributes:
        op: Name in ``torch.ops.vitcop``.
        name: What is special about it.
        make: Gives the positional arguments in the order of the schema.
        dtypes: Of its floating inputs.
        is_large: Whether blocks of real threads on the host would take too long for it.
    """

    op: str
    name: str
    make: Callable[[Draw], Arguments]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    is_large: bool = False

    def arguments(self, dtype: torch.dtype) -> Arguments:
        return self.make(Draw(zlib.crc32(f"{self.op} {self.name}".encode()), dtype))


def rows(*numbers: int) -> Tensor:
    """Lengths or counts."""
    return torch.tensor(numbers, dtype=torch.int64)


def in_cache(tensor: Tensor) -> Tensor:
    """The same numbers as ``[B, H, n, e]``, as a slice of a longer cache in which tokens come before heads."""
    batch, heads, tokens, width = tensor.shape
    cache = torch.full((batch, tokens + 5, heads, width), float("nan"), dtype=tensor.dtype)
    view = cache.transpose(1, 2)[:, :, 3 : 3 + tokens]
    return view.copy_(tensor)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers with a gap behind every one and every row, and NaN or -1 in the gaps."""
    filler = float("nan") if tensor.is_floating_point() else -1
    room = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), filler, dtype=tensor.dtype)
    view = room[..., 1::2]
    return view.copy_(tensor)


def misaligned(tensor: Tensor) -> Tensor:
    """The same numbers side by side, one number behind where memory for many words begins."""
    room = torch.full((tensor.numel() + 1,), float("nan"), dtype=tensor.dtype)
    return room[1:].view(tensor.shape).copy_(tensor)


def spoiled_where(tensor: Tensor, lengths: Tensor, value: float) -> Tensor:
    """``[B, n, ...]`` with ``value`` from each row's length on."""
    padding = torch.arange(tensor.shape[1]) >= lengths.unsqueeze(1)
    return tensor.masked_fill(padding.view(*padding.shape, *[1] * (tensor.dim() - 2)), value)


def moved(value: Any, device: str) -> Any:
    """An argument on a device, lying in memory as it did."""
    if isinstance(value, list):
        return [moved(part, device) for part in value]
    if not isinstance(value, Tensor) or value.is_meta or value.device.type == device:
        return value
    if value.numel() == 0:
        return value.to(device)
    last = value.storage_offset() + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    whole = value.as_strided((last + 1,), (1,), 0).to(device)
    return whole.as_strided(value.shape, value.stride(), value.storage_offset())
