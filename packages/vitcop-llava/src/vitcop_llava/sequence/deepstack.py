"""Features of the vision tower that the first decoder layers add to the visual tokens they give, as in Qwen3-VL.

The model adds them at a mask of the prompt's columns. While a call is pruned the columns are others from cut to cut, so
what is yet to be added is kept beside the visual tokens, and reduced and merged as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitcop_core import Selection
from vitcop_core.ops.co_prune import group_means
from vitcop_core.tokens import places_of
from vitcop_llava.sequence.segment import Segment, take, visual_mask


class Deepstack:
    """What a prefill has yet to add to its visual tokens, layer by layer."""

    def __init__(self, where: Tensor, features: Sequence[Tensor], segment: Segment) -> None:
        """Take what stays of the features in the first segment.

        Args:
            where: ``[B, L]`` bool, the columns that they are of.
            features: Of each layer in turn, ``[placeholders, d]``, row by row.
            segment: The first one.
        """
        number = (where.flatten().cumsum(0) - 1).clamp(min=0).view_as(where)
        own = segment.visual_of(number.gather(1, segment.columns))
        self._left = [each[own] for each in features]

    def add(self, hidden: Tensor, segment: Segment) -> Tensor:
        """Return a layer's output ``[B, P, d]`` with what that layer adds."""
        features = self._left.pop(0).to(hidden.device, hidden.dtype)
        if isinstance(segment.places, range):
            first, stop = segment.places.start, segment.places.stop
            return torch.cat([hidden[:, :first], hidden[:, first:stop] + features, hidden[:, stop:]], dim=1)
        slots = segment.visual
        if segment.lengths is not None:
            beyond = torch.arange(slots.shape[1], device=slots.device) >= segment.lengths[:, None]
            slots = slots.masked_fill(beyond, segment.slots)
        room = hidden.new_zeros((hidden.shape[0], segment.slots + 1, hidden.shape[2]))
        room = room.scatter(1, slots[..., None].expand_as(features), features)[:, :-1]
        return torch.where(visual_mask(segment)[..., None], hidden + room, hidden)

    def cut(self, count: int, selection: Selection) -> None:
        """Reduce what is left as a cut reduces ``count`` tokens: merged ones get the mean of their group's."""
        self._left = [_selected(each, count, selection) for each in self._left]


def _selected(features: Tensor, count: int, selection: Selection) -> Tensor:
    """Return ``[B, k, d]`` of ``[B, N, d]``: what goes with the tokens that a cut leaves, appended ones included."""
    if selection.slot is not None:
        return group_means(features, selection.slot, selection.index.shape[1])
    index = selection.index
    if selection.appended_at is not None:
        index = torch.cat([index, selection.appended_at], dim=1)
        index = index.gather(1, places_of(index < count, index.shape[1]))  # a row's own first
    return take(features, index.clamp(max=count - 1))
