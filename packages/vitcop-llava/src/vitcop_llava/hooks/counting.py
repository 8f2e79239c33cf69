"""Which images each row of a prefill holds, and whether any padding: arithmetic on what was read of the prompt.

Shapes do not tell. On a device without values rows count as alike, and a mask as one with padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vitcop_llava.hooks.kept import PlannedImage
from vitcop_llava.hooks.reading import Bools, HostPrompt, Ints
from vitcop_llava.hooks.state import Rows, Source

Item = TypeVar("Item")


def count_rows(
    sources: Mapping[str, Source],
    seen: HostPrompt | None,
    attention_mask: Tensor | None,
    *,
    may_be_packed: bool = False,
) -> tuple[Rows, bool]:
    """Count the images and clips of each row, leaving out those that the mask hides.

    Args:
        sources: The images of the batch, the clips, or both, by kind; get their counts. Images whose placeholders are
            all masked are taken off them.
        seen: What was read of the prompt; None on a device without values.
        attention_mask: ``[B, past + L]`` or None.
        may_be_packed: Whether transformers would take positions that do not go on by one for the seams of samples.

    Returns:
        The rows; and whether the mask hides anything.

    Raises:
        ValueError: A row's placeholders are not those of a whole number of images or clips, an image is hidden in part,
            or positions do not count through the images.
    """
    if seen is None:
        for source in sources.values():
            rows = source.where.shape[0]
            source.counts = (len(source.images) // rows,) * rows
        return Rows(_members_of(sources.values())), attention_mask is not None
    attended = seen.attended
    if seen.positions is not None:
        _check_positions(seen.positions, seen.where, attended, may_be_packed)
    text, shown = attended, np.zeros_like(attended)
    for kind, source in sources.items():
        held = seen.where[kind]
        source.counts = _count_source(source, [*map(int, held.sum(1))])
        if attention_mask is not None and bool((held & ~attended).any()):
            source.counts = _hide(source, held, attended)
            source.where = source.where & attention_mask[:, -held.shape[1] :].to(source.where.device, torch.bool)
        text, shown = text & ~held, shown | (held & attended)
    is_padded = seen.mask is not None and not bool(seen.mask.all())
    members = _members_of(sources.values())
    if len(set(members)) > 1:
        return Rows(members, tuple(map(int, (text | shown).sum(1)))), is_padded
    return Rows(members, None, _span(shown), _first(seen.positions)), is_padded


def _check_positions(positions: Ints, where: Mapping[str, Bools], attended: Bools, may_be_packed: bool) -> None:
    """Raise unless position ids ``[B, L]`` count up in every row, and by one at each placeholder."""
    step = positions[:, 1:] - positions[:, :-1]
    is_visual = np.logical_or.reduce([*where.values()])[:, 1:]
    is_wrong = step != 1 if may_be_packed else (step < 0) | (is_visual & (step != 1))
    if bool((is_wrong & attended[:, 1:] & attended[:, :-1]).any()):
        raise ValueError(
            "position_ids must count up in every row, by one at each image placeholder, got others: rows of several "
            "packed samples cannot be pruned; give each sample a row of its own, padded, or leave position_ids out"
        )


def _count_source(source: Source, placeholders: Sequence[int]) -> tuple[int, ...]:
    """Return how many images each row holds, of which `generate` may have repeated those of each row."""
    kind, repeats = source.results.kind, source.repeats
    if repeats > 1:
        images = source.results.images
        once = count_images(placeholders[::repeats], [image.tiling.placeholders for image in images], kind)
        own = by_row(range(len(images)), once)
        source.origin, source.repeats = [image for row in own for _ in range(repeats) for image in row], 1
    return count_images(placeholders, [image.tiling.placeholders for image in source.images], kind)


def _hide(source: Source, held: Bools, attended: Bools) -> tuple[int, ...]:
    """Take off the images whose placeholders are masked, as if they were not there, and return the new counts.

    Raises:
        ValueError: Some of an image's placeholders are masked, and others are not.
    """
    sizes = [image.tiling.placeholders for image in source.images]
    seen = [*map(int, np.add.reduceat(attended[held], np.cumsum([0, *sizes[:-1]]), dtype=np.int64))]
    shown, start = list[int](), 0
    for row, count in enumerate(source.counts):
        own = range(start, start + count)
        for image in own:
            if seen[image] not in (0, sizes[image]):
                raise ValueError(
                    f"attention_mask must hide an image whole or not at all, got a mask that shows {seen[image]} of "
                    f"the {sizes[image]} placeholders of {source.results.kind} {image - start} in row {row}"
                )
        shown.append(sum(seen[image] > 0 for image in own))
        start += count
    source.origin = [number for number, there in zip(source.numbers, seen, strict=True) if there]
    return tuple(shown)


def _span(shown: Bools) -> range | None:
    """Return the columns of the placeholders, if they are one run that is the same in all rows ``[B, L]``."""
    columns = np.flatnonzero(shown.any(0))
    if len(columns) == 0:
        return None
    span = range(int(columns[0]), int(columns[-1]) + 1)
    return span if bool(shown[:, span.start : span.stop].all()) else None


def _first(positions: Ints | None) -> int | None:
    """Return the position id that all rows ``[B, L]`` count from, by one at every token; None where they do not."""
    if positions is None:
        return None
    first = int(positions[0, 0])
    return first if bool((positions == first + np.arange(positions.shape[1])).all()) else None


def without_padding(attention_mask: Tensor | None) -> Tensor | None:
    """Return the mask, or None if it hides nothing; reads it, as transformers does with every mask."""
    if attention_mask is None or attention_mask.device.type == "meta":
        return attention_mask
    if attention_mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return attention_mask
    return None if bool(attention_mask.all()) else attention_mask


def either(masks: Sequence[Tensor]) -> Tensor:
    """Return where any of the masks is True."""
    found = masks[0]
    for mask in masks[1:]:
        found = found | mask
    return found


def count_images(placeholders: Sequence[int], images: Sequence[int], kind: str = "image") -> tuple[int, ...]:
    """Return how many images each row holds, from the placeholders of the rows and of the images, in order.

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
                f"input_ids must hold the placeholders of whole {kind}s in every row, got {visual} in row {row}: "
                f"{stop - start} {kind}s fill {visual - left} of them, and {coming}"
            )
        found.append(stop - start)
        start = stop
    return tuple(found)


def by_row(images: Sequence[Item], counts: Sequence[int]) -> list[tuple[Item, ...]]:
    """Return the images of each row, from their number in each."""
    stops = [sum(counts[: row + 1]) for row in range(len(counts))]
    return [tuple(images[stop - count : stop]) for stop, count in zip(stops, counts, strict=True)]


def _members_of(sources: Iterable[Source]) -> tuple[tuple[PlannedImage, ...], ...]:
    """Return the images and clips of each row, images first, whatever their order in the prompt."""
    each = [by_row(source.images, source.counts) for source in sources]
    return tuple(tuple(image for part in row for image in part) for row in zip(*each, strict=True))
