"""Index arithmetic of a pruned sequence: which column each slot stands for, on the device and without waiting for it.

A *column* is a place in the prompt as the caller sees it (logical); a *slot* is a place in what the layers run on
(physical). Rows that keep fewer tokens than others are padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from vitcop_core import ops
from vitcop_core.tokens import places_of


@dataclass(frozen=True, eq=False)
class Segment:
    """What a stretch of decoder layers runs on.

    Attributes:
        columns: ``[B, P]`` int64, the column (of this call's tokens) that each slot stands for; arbitrary in padding.
        valid: ``[B, P]`` bool, False in the padding of shorter rows; None where no row is padded.
        places: ``[B, N]`` int64, slots of the visual tokens, ascending; arbitrary past a row's own number. A range
            where they are the same run of slots in all rows.
        lengths: ``[B]`` int64, visual tokens of each row; None where all rows have N.
        position_ids: ``[B, P]`` int64; ``[B, P, 3]`` where positions have axes.
        is_merged: ``[B, N]`` bool, which visual tokens stand for several; None before any merging.
    """

    columns: Tensor
    valid: Tensor | None
    places: Tensor | range
    lengths: Tensor | None
    position_ids: Tensor
    is_merged: Tensor | None = None

    @property
    def slots(self) -> int:
        """Physical length P."""
        return self.columns.shape[1]

    @property
    def count(self) -> int:
        """Visual tokens of each row, the most where they differ: N."""
        return len(self.places) if isinstance(self.places, range) else self.places.shape[1]

    @property
    def visual(self) -> Tensor:
        """``[B, N]`` int64: the places, as a tensor."""
        if not isinstance(self.places, range):
            return self.places
        run = torch.arange(self.places.start, self.places.stop, device=self.columns.device)
        return run.expand(self.columns.shape[0], -1)

    def visual_of(self, values: Tensor, dim: int = 1) -> Tensor:
        """Return the part of ``values`` that belongs to the visual tokens: N of the P slots in dimension ``dim``."""
        if isinstance(self.places, range):
            return values.narrow(dim, self.places.start, len(self.places))
        shape = [*values.shape[:dim], self.count, *values.shape[dim + 1 :]]
        spread = self.places.view(len(self.places), *[1] * (dim - 1), -1, *[1] * (values.ndim - dim - 1))
        return values.gather(dim, spread.expand(shape))


def on_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return host numbers as an int64 tensor; from pinned memory the copy does not wait for what the device has yet to
    do.
    """
    return copied(torch.tensor(values, dtype=torch.int64, device="cpu"), device)


def copied(host: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, as `on_device` does."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def grid_positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return ``[rows * columns, 2]`` float32: (row / rows, column / columns) of every patch, in raster order."""
    with torch.inference_mode(False):  # whoever keeps it may need it where there are gradients
        # As floats from the start: a quotient of integers has whatever dtype is the default.
        down = torch.arange(rows, dtype=torch.float32, device=device) / rows
        across = torch.arange(columns, dtype=torch.float32, device=device) / columns
        return torch.cartesian_prod(down, across).reshape(rows * columns, 2)


def compact(keep: Tensor, length: int, *, ragged: bool) -> tuple[Tensor, Tensor | None]:
    """Return where each row's kept places are, right-aligned.

    Args:
        keep: ``[B, n]`` bool, at most ``length`` True in a row.
        length: Slots of the result.
        ragged: Whether rows may keep fewer than ``length``.

    Returns:
        ``[B, length]`` int64 indices, ascending over the kept; and which of them are kept (None unless ragged).
    """
    order = torch.argsort(keep.to(torch.uint8), dim=1, stable=True)[:, keep.shape[1] - length :]
    return order, keep.gather(1, order) if ragged else None


def take(hidden: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``hidden`` [B, n, ...] at ``index`` [B, k]."""
    shape = (*index.shape, *hidden.shape[2:])
    return hidden.gather(1, index.reshape(*index.shape, *[1] * (hidden.ndim - 2)).expand(shape))


def visual_mask(segment: Segment) -> Tensor:
    """Return which slots hold visual tokens, ``[B, P]`` bool."""
    slots = _own(segment.visual, segment.lengths, segment.slots)
    mask = torch.zeros((segment.columns.shape[0], segment.slots + 1), dtype=torch.bool, device=segment.columns.device)
    return mask.scatter(1, slots, True)[:, :-1]


def _own(places: Tensor, lengths: Tensor | None, nowhere: int) -> Tensor:
    """Return ``places`` [B, N] with those past a row's own number replaced by ``nowhere``."""
    if lengths is None:
        return places
    beyond = torch.arange(places.shape[1], device=places.device) >= lengths[:, None]
    return places.masked_fill(beyond, nowhere)


def survivor_slots(segment: Segment, index: Tensor, lengths: Tensor | None) -> Tensor:
    """Return where the survivors of a cut stand before it.

    Args:
        segment: The segment before the cut.
        index: ``[B, k]`` int64, which of the N visual tokens each survivor stands at; N or more past a row's own.
        lengths: ``[B]`` int64, survivors of each row; None where all rows keep k.

    Returns:
        ``[B, k]`` int64; P (one past the end) where there is none.
    """
    if lengths is not None:
        index = index.clamp(max=segment.count - 1)
    return _own(segment.visual.gather(1, index), lengths, segment.slots)


def cut_segment(
    segment: Segment,
    survivors: Tensor,
    lengths: Tensor | None,
    slots: int,
    is_merged: Tensor | None,
    along: Sequence[Tensor] = (),
) -> tuple[Segment, Tensor, list[Tensor]]:
    """Return the segment after a cut, and whatever has a place for every slot.

    Args:
        segment: The segment before.
        survivors: ``[B, k]`` int64, the slots of the visual tokens that stay; P where there is none.
        lengths: ``[B]`` int64, survivors of each row; None where all rows keep k.
        slots: Physical length after the cut.
        is_merged: ``[B, k]`` bool or None.
        along: ``[B or 1, P, ...]`` each: hidden states and the like.

    Returns:
        The new segment; ``[B, slots]`` the old slot of each new one; and ``along`` at those slots.
    """
    visual = visual_mask(segment)
    survives = functional.pad(torch.zeros_like(visual), (0, 1)).scatter(1, survivors, True)[:, :-1]
    keep = survives | ~visual
    if segment.valid is not None:
        keep = keep & segment.valid
    origin, valid = compact(keep, slots, ragged=lengths is not None)
    moved = ops.gather_tokens([survives, segment.columns, segment.position_ids, *along], origin)
    survives, columns, position_ids, *rest = moved
    after = replace(
        segment,
        columns=columns,
        valid=valid,
        places=places_of(survives if valid is None else survives & valid, survivors.shape[1]),
        lengths=lengths,
        position_ids=position_ids,
        is_merged=is_merged,
    )
    return after, origin, rest


def put(hidden: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """Return ``hidden`` [B, P, d] with ``values`` [B, k, d] at ``places`` [B, k]; P means nowhere. A new tensor."""
    room = functional.pad(hidden, (0, 0, 0, 1))
    return room.scatter(1, places[..., None].expand_as(values), values.to(hidden.dtype))[:, :-1]


def restore(hidden: Tensor, segment: Segment, placeholders: Tensor) -> Tensor:
    """Put the slots of a segment back at the caller's columns: ``[B, P, d]`` to ``[B, L, d]``.

    Dropped columns are zero, but for the last placeholder of each image: in the pruned sequence the token that predicts
    the text after an image is the last one that survived before it, so its state stands there (a row of zeros would
    give that text a uniform likelihood, and a prompt that ends in its image nothing to go on).
    """
    rows, length = placeholders.shape
    columns = segment.columns if segment.valid is None else segment.columns.masked_fill(~segment.valid, length)
    numbers = torch.arange(segment.slots, device=columns.device).expand(rows, -1)
    slots = torch.full((rows, length + 1), -1, dtype=torch.int64, device=columns.device)
    slots = slots.scatter(1, columns, numbers)[:, :-1]
    last = placeholders & ~functional.pad(placeholders, (0, 1))[:, 1:]
    # Tokens that a cut appended stand behind all others of the images, whatever their column.
    final = last & (placeholders.flip(1).cumsum(1).flip(1) == 1)
    slots = torch.where((last & (slots < 0)) | final, slots.cummax(dim=1).values, slots)
    found = take(hidden, slots.clamp(min=0))
    return found.masked_fill((slots < 0)[..., None], 0)
