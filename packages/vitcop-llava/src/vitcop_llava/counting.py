"""What a prefill has to know of its rows before anything is cut: which images each holds, and whether any padding.

Shapes do not tell, so it is read back from the device, once a prefill; of a single row without mask and positions
nothing has to be read. On a device without values rows count as alike, and a mask as one with padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from vitcop_llava.state import PlannedImage, Rows, Source

Item = TypeVar("Item")


def count_rows(
    sources: Sequence[Source],
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    *,
    may_be_packed: bool = False,
) -> tuple[Rows, bool]:
    """Count the images and clips of each row, leaving out those that the mask hides.

    Args:
        sources: The images of the batch, the clips, or both. Images whose placeholders are all masked are taken off
            them.
        attention_mask: ``[B, past + L]`` or None.
        position_ids: The caller's, ``[B or 1, L]``, or None.
        may_be_packed: Whether transformers would take positions that do not go on by one for the seams of samples.

    Returns:
        The rows; and whether the mask hides anything.

    Raises:
        ValueError: A row's placeholders are not those of a whole number of images or clips, an image is hidden in part,
            or positions do not count through the images.
    """
    rows, length = sources[0].where.shape
    if sources[0].where.device.type == "meta" or (rows == 1 and attention_mask is None and position_ids is None):
        return Rows(tuple((len(source.images) // rows,) * rows for source in sources)), attention_mask is not None
    attended = torch.ones_like(sources[0].where)
    if attention_mask is not None:
        attended = attention_mask[:, -length:].to(device=attended.device, dtype=torch.bool)
    table, is_padded, is_counting = _read(sources, attended, attention_mask, position_ids, may_be_packed)
    if not is_counting:
        raise ValueError(
            "position_ids: must count up in every row, by one at each image placeholder, got others: rows of several "
            "packed samples cannot be pruned; give each sample a row of its own, padded, or leave position_ids out"
        )
    counts = []
    for number, source in enumerate(sources):
        placeholders = [row[2 * number] for row in table]
        seen = [row[2 * number + 1] for row in table]
        counts.append(_count_source(source, placeholders))
        if placeholders != seen:
            counts[-1] = _hide(source, counts[-1], attended)
    tokens = tuple(row[-1] + sum(row[1:-1:2]) for row in table)
    alike = len(set(members_of(sources, counts))) == 1
    return Rows(tuple(counts), None if alike else tokens), is_padded


def _read(
    sources: Sequence[Source],
    attended: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    may_be_packed: bool,
) -> tuple[list[list[int]], bool, bool]:
    """The one read of a prefill.

    Returns:
        For each row the placeholders of each source, in all and attended, and the attended text; whether the mask hides
        anything; and whether positions count up.
    """
    text, columns = attended, list[Tensor]()
    for source in sources:
        columns += [source.where.sum(1), (source.where & attended).sum(1)]
        text = text & ~source.where
    hides, counts_up = text.new_zeros(()), text.new_ones(())
    if attention_mask is not None:
        hides = (attention_mask == 0).any().to(text.device)
    if position_ids is not None:
        position_ids = position_ids.to(text.device)
        step = position_ids[:, 1:] - position_ids[:, :-1]
        is_visual = either([source.where for source in sources])[:, 1:]
        is_wrong = step != 1 if may_be_packed else (step < 0) | (is_visual & (step != 1))
        counts_up = ~(is_wrong & attended[:, 1:] & attended[:, :-1]).any()
    flags = torch.stack([hides, counts_up]).to(torch.int64).expand(text.shape[0], 2)
    table = torch.cat([torch.stack([*columns, text.sum(1)], dim=1), flags], dim=1).tolist()
    return [row[:-2] for row in table], bool(table[0][-2]), bool(table[0][-1])


def _count_source(source: Source, placeholders: Sequence[int]) -> tuple[int, ...]:
    """How many images each row holds, of which `generate` may have repeated those of each row."""
    kind, repeats = source.results.kind, source.repeats
    if repeats > 1:
        images = source.results.images
        once = share_out(placeholders[::repeats], [image.tiling.placeholders for image in images], kind)
        own = by_row(range(len(images)), once)
        source.origin, source.repeats = [image for row in own for _ in range(repeats) for image in row], 1
    return share_out(placeholders, [image.tiling.placeholders for image in source.images], kind)


def _hide(source: Source, counts: Sequence[int], attended: Tensor) -> tuple[int, ...]:
    """Take off the images whose placeholders are masked, as if they were not there; reads where they stand.

    Raises:
        ValueError: Some of an image's placeholders are masked, and others are not.
    """
    sizes = [image.tiling.placeholders for image in source.images]
    seen = [int(part.sum()) for part in attended.cpu()[source.where.cpu()].split(sizes)]
    shown, start = list[int](), 0
    for row, count in enumerate(counts):
        own = range(start, start + count)
        for image in own:
            if seen[image] not in (0, sizes[image]):
                raise ValueError(
                    f"attention_mask: must hide an image whole or not at all, got a mask that shows {seen[image]} of "
                    f"the {sizes[image]} placeholders of {source.results.kind} {image - start} in row {row}"
                )
        shown.append(sum(seen[image] > 0 for image in own))
        start += count
    source.origin = [number for number, there in zip(source.numbers, seen, strict=True) if there]
    source.where = source.where & attended
    return tuple(shown)


def without_padding(attention_mask: Tensor | None) -> Tensor | None:
    """The mask, or None if it hides nothing; reads it, as transformers does with every mask."""
    if attention_mask is None or attention_mask.device.type == "meta":
        return attention_mask
    if attention_mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return attention_mask
    return None if bool(attention_mask.all()) else attention_mask


def either(masks: Sequence[Tensor]) -> Tensor:
    """Where any of the masks is True."""
    found = masks[0]
    for mask in masks[1:]:
        found = found | mask
    return found


def share_out(placeholders: Sequence[int], images: Sequence[int], kind: str = "image") -> tuple[int, ...]:
    """How many images each row holds, from the placeholders of the rows and of the images, in order.

    Args:
        placeholders: Of each row.
        images: Of each image or clip.
        kind: What they are, for the message of an error.

    Raises:
        ValueError: A row's are not those of the images that are next.
    """
    found, start = [], 0
    for row, visual in enumerate(placeholders):
        stop, left = start, visual
        while stop < len(images) and left >= images[stop]:
            left, stop = left - images[stop], stop + 1
        if left:
            coming = f"the next takes {images[stop]}" if stop < len(images) else "there is no other"
            raise ValueError(
                f"input_ids: row {row} holds {visual} {kind} placeholders, which must be those of whole {kind}s; "
                f"{stop - start} {kind}s fill {visual - left} of them, and {coming}"
            )
        found.append(stop - start)
        start = stop
    return tuple(found)


def by_row(images: Sequence[Item], counts: Sequence[int]) -> list[tuple[Item, ...]]:
    """The images of each row, from their number in each."""
    stops = [sum(counts[: row + 1]) for row in range(len(counts))]
    return [tuple(images[stop - count : stop]) for stop, count in zip(stops, counts, strict=True)]


def members_of(sources: Sequence[Source], counts: Sequence[Sequence[int]]) -> list[tuple[PlannedImage, ...]]:
    """The images and clips of each row, images first, whatever their order in the prompt."""
    each = [by_row(source.images, count) for source, count in zip(sources, counts, strict=True)]
    return [tuple(image for part in row for image in part) for row in zip(*each, strict=True)]
