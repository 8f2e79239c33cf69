"""Attention masks of pruned segments, in whatever form the attention backend wants them.

transformers makes one mask for all layers, sized by the cache's logical length. After a cut that mask fits no layer, so
each segment gets its own from the same factory, which is told the physical sizes instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask


@dataclass(frozen=True)
class PhysicalSizes:
    """Stands in for a cache where masks are made: answers with physical lengths.

    Attributes:
        past: Slots before the queries; a tensor where only the device knows.
        keys: Slots in all, the queries' own included; None for those in use.
        is_compileable: As of a cache, which a mask may then not be left out for.
    """

    past: int | Tensor
    keys: int | None = None
    is_compileable: bool = False

    def get_query_offset(self, layer_idx: int = 0) -> int | Tensor:
        """Return how many slots there are before the queries."""
        return self.past

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        """Return how many slots there are before the queries."""
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int | Tensor, int]:
        """Return the number of keys, and the first key's offset."""
        return self.past + query_length if self.keys is None else self.keys, 0


def segment_mask(
    config: PreTrainedConfig,
    like: Tensor,
    queries: int,
    past: int | Tensor,
    padding: Tensor | None,
    keys: int | None = None,
) -> Any:
    """Return the causal mask of ``queries`` new slots after ``past`` ones.

    Args:
        config: The language model's; its attention backend decides the form of the result.
        like: ``[B, ...]``, for batch size, dtype and device.
        queries: New slots.
        past: Slots in use in the cache; a tensor where only the device knows.
        padding: ``[B, S]`` bool, False where nothing may be attended to; None for no padding.
        keys: S, where that is more than the slots in use: those behind the queries are not attended to.

    Returns:
        What the backend takes: a 4-D float tensor to add, a 2-D one for FlashAttention, a block mask, or None.
    """
    if queries == 1 and keys is None:  # a lone token attends to all that is no padding
        backend = config._attn_implementation or ""
        if padding is None and (backend == "sdpa" or "flash" in backend):
            return None
        if padding is not None and backend in ("sdpa", "eager"):
            return _additive(padding[:, None, None], like.dtype)
    mask = create_causal_mask(
        config,
        torch.empty((like.shape[0], queries, 0), dtype=like.dtype, device=like.device),
        padding,
        cast(Cache, PhysicalSizes(past, keys, is_compileable=keys is not None)),  # its name differs between versions
        layer_idx=0,
        # With a 2-D mask the factory would read its values back from the device to see whether it can be left out.
        allow_is_causal_skip=padding is None and keys is None,
    )
    is_kept = padding is not None or keys is not None
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == 4 and is_kept:
        return _additive(mask, like.dtype)
    return mask


# Kernels that add a mask read it in such steps, and copy one that is laid out otherwise, in every layer.
_ALIGNMENT = 16


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bool mask as what is added to scores, which a kernel would make of it anew in every layer."""
    width, lowest = mask.shape[-1], torch.finfo(dtype).min
    shape = (*mask.shape[:-1], -(-width // _ALIGNMENT) * _ALIGNMENT)
    room = torch.full(shape, lowest, dtype=dtype, device=mask.device)
    if torch.compiler.is_compiling():
        # Of what it could make in passing, compiled code would make a copy in every layer.
        values = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)
        return room.index_copy(-1, torch.arange(width, device=mask.device), values)[..., :width]
    return room[..., :width].masked_fill_(mask, 0)


def slot_padding(columns: Tensor, attention_mask: Tensor | None, *, has_padding: bool) -> Tensor | None:
    """Return which slots may be attended to: ``[B, P]`` bool, or None for all of them.

    Args:
        columns: ``[B, P]`` int64, logical column of each slot; -1 for padding.
        attention_mask: The caller's ``[B, logical]`` mask, or None.
        has_padding: Whether ``columns`` may hold -1.
    """
    if attention_mask is None:
        return columns >= 0 if has_padding else None
    attended = attention_mask.to(device=columns.device, dtype=torch.bool)
    attended = attended.gather(1, columns.clamp(min=0))
    return attended & (columns >= 0) if has_padding else attended
