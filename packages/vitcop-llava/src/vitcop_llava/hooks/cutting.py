"""Applies what a cut has decided: the segment after it, and the hidden states that go on. Decides nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vitcop_core import Selection
from vitcop_llava.hooks import aligned
from vitcop_llava.hooks.runs import Prefill
from vitcop_llava.sequence.appending import append_segment
from vitcop_llava.sequence.segment import Segment, cut_segment, on_device, put, restore, survivor_slots, take


def apply_cut(
    run: Prefill, selection: Selection, keeps: Tensor | None, counts: list[int], slots: int, hidden: Tensor
) -> tuple[Segment, Tensor, Tensor]:
    """Return the segment after a cut.

    Args:
        run: Its segment is the one before; gets the rotations of the one after, where nothing was appended.
        selection: What stays.
        keeps: ``[B]`` int64, visual tokens of each row that stay; None where all rows keep as many.
        counts: Visual tokens of each row after the cut, those that were appended included.
        slots: Physical length after the cut.
        hidden: ``[B, P, d]``.

    Returns:
        The new segment; ``[B, slots]`` int64, the old slot of each new one, P or more for tokens that were appended
        (where rows are not aligned); ``[B, slots, d]``.
    """
    segment = run.segment
    if selection.appended is None or selection.appended_at is None:
        if run.aligned is not None:
            after, origin, hidden, run.rotary = aligned.cut(segment, run.aligned, selection, hidden, run.rotary)
            return after, origin, hidden
        survivors = survivor_slots(segment, selection.index, keeps)
        if selection.hidden is not None:
            hidden = put(hidden, selection.hidden, survivors)
        along = (hidden, *run.rotary)
        after, origin, moved = cut_segment(segment, survivors, keeps, slots, selection.is_merged, along)
        hidden, cosines, sines = moved
        # Gathered beside the hidden states they would share their graph, which checkpoints run through by layer.
        run.rotary = (cosines.detach(), sines.detach())
        return after, origin, hidden
    if run.aligned is not None:
        return aligned.append(segment, run.aligned, selection.index, selection.appended_at, selection.appended, hidden)
    totals = None if keeps is None else on_device(counts, hidden.device)
    after, origin = append_segment(segment, selection.index, selection.appended_at, totals, slots)
    return after, origin, take(torch.cat([hidden, selection.appended], dim=1), origin)


def keep_positions(run: Prefill, after: Segment, appended_at: Tensor, origin: Tensor) -> Segment:
    """Return the segment after a cut that appended tokens, each at the position of the token it is named after.

    Args:
        run: Its segment is the one before; gets the rotations of the one after.
        after: The segment after the cut.
        appended_at: ``[B, c]`` int64, which of the N visual tokens each new one is named after; N or more past a row's
            own.
        origin: ``[B, slots]`` int64, what `apply_cut` gave.
    """
    segment = run.segment
    named = segment.visual.gather(1, appended_at.clamp(max=segment.count - 1))
    number = origin - segment.slots
    slots = torch.where(number < 0, origin, named.gather(1, number.clamp(min=0)))
    rows = origin.shape[0]
    cosines, sines = (take(part.expand(rows, -1, -1), slots) for part in run.rotary)
    run.rotary = (cosines, sines)
    return replace(after, position_ids=take(segment.position_ids, slots))


def labels_after(labels: Tensor | None, index: Tensor, keeps: Tensor | None) -> Tensor | None:
    """Return the labels ``[B, N]`` of the tokens at ``index`` [B, k]; N or more past what a row keeps, if rows differ
    in that.
    """
    if labels is None:
        return None
    return labels.gather(1, index if keeps is None else index.clamp(max=labels.shape[1] - 1))


def restored(run: Prefill, hidden: Tensor, segment: Segment) -> Tensor:
    """Put the slots of a segment back at the caller's columns: ``[B, P, d]`` to ``[B, L, d]``."""
    if run.aligned is not None:
        return aligned.restore(hidden, segment, run.aligned)
    return restore(hidden, segment, run.placeholders)
