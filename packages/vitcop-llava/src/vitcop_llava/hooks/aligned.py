"""Rows whose images stand at the same columns: a prompt alone, and most batches.

Their visual tokens are the same run of slots in every row, in every segment. So what others sort and scatter for is
slices here, and all that is computed on the device is where the survivors stood. It is the same arithmetic, and
gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitcop_core import Selection, ops
from vitcop_llava.hooks.kept import DROPPED
from vitcop_llava.hooks.runs import Aligned, Prefill
from vitcop_llava.hooks.state import Source
from vitcop_llava.sequence.segment import Segment, compact, take


def is_aligned(sources: Sequence[Source]) -> bool:
    """Return whether what stands in the columns of the images is visual tokens alone, and of one kind of input."""
    source, *others = sources
    return not others and not any(image.newlines for image in source.images)


def enter(
    run: Prefill,
    source: Source,
    span: range,
    first: int | None,
    positions: Tensor | None,
    *,
    keeps_positions: bool = False,
) -> tuple[int, Tensor] | None:
    """Work out the first segment.

    Args:
        run: With its counts of tokens; gets the segment and the tail of text.
        source: The only one.
        span: The columns of the images.
        first: The position id of the first column, where they count on from it by one; None where they do not.
        positions: ``[B or 1, L]`` position ids before anything of this call is dropped, ``[B, L, 3]`` where they have
            axes; None with ``first``.
        keeps_positions: Whether tokens keep their positions, whatever is dropped before them.

    Returns:
        The clusters of a row, and ``[B, k]`` int64, those of its visual tokens, counted from 0 in each row; None where
        nothing was clustered.
    """
    batch, kept, device = len(run.visual), run.visual[0], source.where.device
    numbers = torch.arange(run.length, device=device)
    run.aligned = Aligned(span, numbers)
    run.text_tail = run.length - span.stop
    slots, places = max(run.slots), range(span.start, span.start + kept)
    index, labels = _kept(source, batch, kept)
    columns = numbers.expand(batch, -1) if index is None else _around(numbers, index, span)
    if first is not None:
        ids = numbers[None, :slots]
        ids = ids + first if first else ids
    else:
        assert positions is not None  # the one or the other
        ids = positions
        if index is not None and keeps_positions:
            ids = take(ids.expand(batch, *ids.shape[1:]), columns)
        elif index is not None:
            # Within the images they count by one, and so they go on doing among what is kept.
            tail = positions[:, span.stop :]
            ids = torch.cat([positions[:, : places.stop], tail - (len(span) - kept)], dim=1)
    run.segments.append(Segment(columns, None, places, None, ids.expand(batch, *ids.shape[1:])))
    if labels is None:
        return None
    return sum(source.results.labels[number] for number in source.numbers) // batch, labels


def _around(numbers: Tensor, index: Tensor, places: range) -> Tensor:
    """Return ``[B, k]`` places counted from the first of a run, at ``[P]`` ascending numbers, with those around the
    run.
    """
    rows, start = index.shape[0], places.start
    head, tail = numbers[:start].expand(rows, -1), numbers[places.stop :].expand(rows, -1)
    return torch.cat([head, index + start if start else index, tail], dim=1)


def _kept(source: Source, batch: int, kept: int) -> tuple[Tensor | None, Tensor | None]:
    """Return what stays of the placeholders of each row.

    Returns:
        ``[B, k]`` int64 ascending, which of them, None for all; ``[B, k]`` int64, their clusters, counted from 0 in
        each row, None where nothing was clustered.
    """
    encoded, numbers = source.results, source.numbers
    if encoded.kept is not None and len(numbers) == batch:
        device, labels = source.where.device, encoded.kept.labels
        index = _rows(encoded.kept.index, numbers).to(device)
        return index, None if labels is None else _rows(labels, numbers).to(device)
    codes = encoded.codes
    if codes is None:
        return None, None
    if source.origin is not None:
        codes = torch.cat(source.batch_codes(codes))
    codes = codes.to(source.where.device).view(batch, -1)
    index, _ = compact(codes != DROPPED, kept, ragged=False)
    if not encoded.labels:
        return index, None
    labels = codes.gather(1, index)
    if batch > 1:
        each = sum(encoded.labels[number] for number in numbers) // batch
        labels = labels - torch.arange(0, batch * each, each, device=labels.device)[:, None]
    return index, labels


def _rows(values: Tensor, numbers: list[int]) -> Tensor:
    """Return those of the rows of ``values`` [images, k]."""
    if numbers == [*range(len(values))]:
        return values
    return torch.stack([values[number] for number in numbers])


def cut(
    segment: Segment, known: Aligned, selection: Selection, hidden: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Segment, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return the segment after a cut that drops and merges, and what goes on.

    Args:
        segment: The one before; all rows keep as many.
        known: Of the rows.
        selection: What stays.
        hidden: ``[B, P, d]``.
        rotary: Cosines and sines, ``[B or 1, P, e]``.

    Returns:
        The new segment; ``[B, slots]`` the old slot of each new one; hidden states, and the rotations.
    """
    places, numbers = _places(segment), known.numbers
    origin = _around(numbers[: segment.slots], selection.index, places)
    along = [segment.columns, segment.position_ids, *rotary]
    if selection.hidden is None:
        columns, position_ids, cosines, sines, hidden = ops.gather_tokens([*along, hidden], origin)
    else:
        columns, position_ids, cosines, sines = ops.gather_tokens(along, origin)
        hidden = _between(hidden, selection.hidden, places)
    kept = range(places.start, places.start + selection.index.shape[1])
    after = replace(segment, columns=columns, places=kept, position_ids=position_ids, is_merged=selection.is_merged)
    # Gathered beside the hidden states they would share their graph, which checkpoints run through by layer.
    return after, origin, hidden, (cosines.detach(), sines.detach())


def append(
    segment: Segment, known: Aligned, index: Tensor, appended_at: Tensor, appended: Tensor, hidden: Tensor
) -> tuple[Segment, Tensor, Tensor]:
    """Return the segment after a cut that appends tokens behind the last visual one, and the hidden states.

    Args:
        segment: The one before; all rows keep as many.
        known: Of the rows.
        index: ``[B, k]`` int64, which of the N visual tokens stay.
        appended_at: ``[B, c]`` int64, which of them each new one is named after.
        appended: ``[B, c, d]``.
        hidden: ``[B, P, d]``.

    Returns:
        The new segment, whose position ids mean nothing yet; ``[B, slots]`` the old slot of each new one, that of its
        namesake for a new token; hidden states.
    """
    places, numbers = _places(segment), known.numbers
    origin = _around(numbers[: segment.slots], torch.cat([index, appended_at], dim=1), places)
    made = torch.cat([take(segment.visual_of(hidden), index), appended.to(hidden.dtype)], dim=1)
    count = index.shape[1] + appended_at.shape[1]
    after = replace(
        segment,
        columns=segment.columns.gather(1, origin),
        places=range(places.start, places.start + count),
        position_ids=origin,
        is_merged=(numbers[:count] >= index.shape[1]).expand(index.shape[0], -1),
    )
    return after, origin, _between(hidden, made, places)


def _places(segment: Segment) -> range:
    assert isinstance(segment.places, range)  # or rows are not aligned
    return segment.places


def _between(hidden: Tensor, values: Tensor, places: range) -> Tensor:
    """Return ``hidden`` [B, P, d] with ``values`` [B, k, d] in place of the slots of a run."""
    return torch.cat([hidden[:, : places.start], values.to(hidden.dtype), hidden[:, places.stop :]], dim=1)


def restore(hidden: Tensor, segment: Segment, known: Aligned) -> Tensor:
    """Do what :func:`vitcop_llava.sequence.segment.restore` does.

    Args:
        hidden: ``[B, P, d]``.
        segment: What it belongs to.
        known: Of the rows.
    """
    length, last = len(known.numbers), known.span.stop - 1
    if segment.slots == length and segment.is_merged is None:
        return hidden
    whole = hidden.new_zeros((hidden.shape[0], length, hidden.shape[2]))
    whole = whole.scatter_(1, segment.columns[..., None].expand_as(hidden), hidden)
    whole[:, last] = hidden[:, _places(segment).stop - 1]
    return whole
