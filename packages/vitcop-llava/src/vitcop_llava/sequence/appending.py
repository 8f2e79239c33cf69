"""A cut that makes new tokens: they take slots behind the last visual token, in front of the text after it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from vitcop_core.tokens import places_of
from vitcop_llava.sequence.segment import Segment, compact, visual_mask


def append_segment(
    segment: Segment, index: Tensor, appended_at: Tensor, lengths: Tensor | None, slots: int
) -> tuple[Segment, Tensor]:
    """Return the segment after a cut that appends tokens.

    Args:
        segment: The segment before.
        index: ``[B, k]`` int64, which of the N visual tokens each surviving one is; N or more past a row's own.
        appended_at: ``[B, c]`` int64, which of the N visual tokens each new one is named after, whose column it then
            stands for; N or more past a row's own.
        lengths: ``[B]`` int64, visual tokens of each row after the cut; None where all rows have k + c.
        slots: Physical length after the cut.

    Returns:
        The new segment, whose position ids mean nothing yet; ``[B, slots]`` what each new slot was before: one of the P
        old ones, or P + j for the j-th new token.
    """
    count, width = segment.count, segment.slots
    visual = visual_mask(segment)
    kept = segment.visual.gather(1, index.clamp(max=count - 1)).masked_fill(index >= count, width)
    survives = functional.pad(torch.zeros_like(visual), (0, 1)).scatter(1, kept, True)[:, :-1]
    stays = survives | ~visual
    if segment.valid is not None:
        stays = stays & segment.valid
    used = appended_at < count
    named = segment.visual.gather(1, appended_at.clamp(max=count - 1))
    columns = torch.cat([segment.columns, segment.columns.gather(1, named)], dim=1)

    number = torch.arange(width, device=index.device)
    behind = (visual * number).amax(dim=1, keepdim=True).expand_as(appended_at)
    # Old slots are even, and what follows slot s is 2 s + 1: a stable sort keeps the new ones in order.
    order = torch.argsort(torch.cat([2 * number.expand_as(visual), 2 * behind + 1], dim=1), dim=1, stable=True)
    keep = torch.cat([stays, used], dim=1).gather(1, order)
    chosen, valid = compact(keep, slots, ragged=lengths is not None)
    origin = order.gather(1, chosen)
    is_visual = torch.cat([survives, used], dim=1).gather(1, origin)
    places = places_of(is_visual if valid is None else is_visual & valid, index.shape[1] + appended_at.shape[1])
    after = replace(
        segment,
        columns=columns.gather(1, origin),
        valid=valid,
        places=places,
        lengths=lengths,
        position_ids=torch.zeros_like(origin),
        is_merged=(origin >= width).gather(1, places),
    )
    return after, origin
