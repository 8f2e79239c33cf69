"""What the queries of a layer attend to: keys, mask and rotations, of a new segment or of a cache that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitcop_llava.families import Parts
from vitcop_llava.hooks.runs import Keys, Prefill
from vitcop_llava.sequence.cache import HeldLayer, PrunedLayer
from vitcop_llava.sequence.masks import segment_mask, slot_padding
from vitcop_llava.sequence.static import PrunedStaticLayer

Step = dict[str, Any]
"""What one layer is given in place of the first one's arguments."""


def keys_of(parts: Parts, run: Prefill, like: Tensor, layer: int) -> Keys:
    """Return what the current segment attends to; it begins at ``layer`` and has yet to be appended to its cache."""
    segment, past = run.segment, 0
    columns, has_padding = segment.columns, segment.valid is not None
    if run.past:
        columns = columns + run.past
    if segment.valid is not None:
        columns = columns.masked_fill(~segment.valid, -1)
    if run.layers and (past := run.layers[layer].physical_length):
        held = run.layers[layer]
        columns = torch.cat([held.slot_columns(columns.shape[0], columns.device), columns], dim=1)
        has_padding = has_padding or held.has_padding
    padding = slot_padding(columns, run.attention_mask, has_padding=has_padding)
    mask = segment_mask(parts.config, like, segment.slots, past, padding)
    return Keys(columns, has_padding, padding, mask)


def growing_mask(parts: Parts, held: PrunedLayer, like: Tensor, mask: Tensor | None) -> Any:
    """Return what tokens that follow attend to in a layer of a growing cache, in the attention backend's form.

    Args:
        parts: The model's.
        held: The layer.
        like: ``[B, Q, d]``, for batch size, dtype and device.
        mask: The caller's ``[B, past + Q]`` mask; None where it hides nothing.
    """
    rows, queries, past, padding = like.shape[0], like.shape[1], held.physical_length, None
    if held.has_padding or mask is not None:
        columns = held.columns_of(past + queries, rows, like.device)
        padding = slot_padding(columns, mask, has_padding=held.has_padding)
    return segment_mask(parts.config, like, queries, past, padding)


def static_mask(parts: Parts, held: PrunedStaticLayer, like: Tensor, mask: Tensor | None) -> Any:
    """Return what tokens that follow attend to in a layer of a static cache, in the attention backend's form.

    Nothing in it depends on how many tokens the cache holds but values on the device.

    Args:
        parts: The model's.
        held: The layer.
        like: ``[B, Q, d]``, for batch size, dtype and device.
        mask: The caller's ``[B, columns]`` mask, or None. What stands after its end is not attended to.
    """
    rows, queries, room, device = like.shape[0], like.shape[1], held.room, like.device
    past, padding = held.cumulative_length.to(device) - held.lost, None
    if mask is not None or held.has_padding:
        columns = held.columns_of(room, rows, device)
        padding = columns >= 0
        if mask is not None:
            shown = mask.to(device=device, dtype=torch.bool).gather(1, columns.clamp(0, mask.shape[1] - 1))
            padding = padding & shown & (columns < mask.shape[1])
    if "flash" in (parts.config._attn_implementation or ""):
        # These kernels know no offset of the queries: they are the last of what is not padding.
        used = torch.arange(room, device=device) < past + queries
        padding = used.expand(rows, -1) if padding is None else padding & used
    return segment_mask(parts.config, like, queries, past, padding, keys=room)


def steps_of(
    parts: Parts, held: Mapping[int, HeldLayer], masks: Mapping[int, Any], like: Tensor, positions: Tensor
) -> dict[int, Step]:
    """Return the arguments that differ from one group of layers to the next, for tokens that follow in a cache.

    Args:
        parts: The model's.
        held: A layer of each group.
        masks: What each group attends to.
        like: ``[B, Q, d]``, for dtype and device.
        positions: ``[B or 1, Q]`` position ids, less what was lost at the entry.
    """
    steps: dict[int, Step] = {group: {"attention_mask": mask} for group, mask in masks.items()}
    packed = {group: positions - layer.shift for group, layer in held.items() if _is_shifted(layer)}
    for group, turns in zip(packed, rotations(parts, like, [*packed.values()]), strict=True):
        steps[group]["position_embeddings"] = turns
    return steps


def _is_shifted(held: HeldLayer) -> bool:
    return isinstance(held.shift, Tensor) or held.shift != 0


_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that turn every position of a call by how large its largest is."""


def rotations(parts: Parts, like: Tensor, positions: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
    """Return cosines and sines of each of some position ids ``[B or 1, Q]``, computed as one if that is the same."""
    kind = getattr(parts.rotary, "rope_type", None)
    if len(positions) < 2 or not isinstance(kind, str) or any(name in kind for name in _BY_LENGTH):
        return [parts.rotary(like, each) for each in positions]
    rows = [each.shape[0] for each in positions]
    cosines, sines = parts.rotary(like, torch.cat([*positions]))
    return [*zip(cosines.split(rows), sines.split(rows), strict=True)]
