"""How a batch lies: which row holds which images and clips, what each row keeps, where every token stands.

Counts come from shapes and plans. Only where no shape tells how many images each row holds (rows with different
numbers, or rows whose text alone is as long as an image) are they read back from the device, once a prefill, before
anything is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from vitcop_core import DecoderCut, Plan
from vitcop_llava.families import Parts
from vitcop_llava.planning import Planner
from vitcop_llava.sequence import Segment, compact, on_device, places_of
from vitcop_llava.state import DROPPED, Call, EncodedImages, PlannedImage, Rows, Run, Source

Given = dict[str, Any]
Item = TypeVar("Item")


def image_origin(features: Sequence[Tensor], encoded: EncodedImages) -> list[int] | None:
    """Which encoded image each entry is, where `generate` repeated the images of each row; None: one to one.

    `generate` repeats the tensors themselves, in groups that keep the order, so an image is known by being the same
    object.

    Raises:
        ValueError: The entries are not those that were encoded.
    """
    count = len(encoded.images)
    if len(features) == count:
        return None
    numbers: dict[int, int] = {}
    origin = [numbers.setdefault(id(feature), len(numbers)) for feature in features]
    if len(numbers) != count:
        raise ValueError(
            f"mm_encoder_outputs: holds {len(features)} image features, {len(numbers)} of them different, "
            f"but {count} images were encoded"
        )
    return origin


def placeholders(given: Given, parts: Parts, token_id: int) -> Tensor:
    """Where the placeholders of one kind stand: ``[B, L]`` bool."""
    ids: Tensor | None = given.get("input_ids")
    if ids is not None:
        return ids == token_id
    embeds: Tensor = given["inputs_embeds"]
    token: Tensor = parts.embeddings(torch.full((), token_id, dtype=torch.int64, device=embeds.device))
    return (embeds == token).all(-1)


def logical_positions(kwargs: Given, embeds: Tensor, past: int) -> Tensor:
    """The caller's position ids ``[B or 1, L]``, or what they would be: padding does not count."""
    if kwargs.get("position_ids") is not None:
        positions: Tensor = kwargs["position_ids"]
        return positions
    mask: Tensor | None = kwargs.get("attention_mask")
    length = embeds.shape[1]
    if mask is not None:
        return (mask.to(torch.int64).cumsum(1) - 1).clamp(min=0)[:, -length:].to(embeds.device)
    return torch.arange(past, past + length, device=embeds.device)[None]


def count_rows(sources: Sequence[Source], attention_mask: Tensor | None) -> Rows:
    """How many images and clips each row holds.

    Args:
        sources: The images of the batch, the clips, or both.
        attention_mask: ``[B, past + L]`` or None.

    Raises:
        ValueError: A row's placeholders are not those of a whole number of images or clips.
    """
    masks = [source.where for source in sources]
    tilings = [[image.tiling for image in source.images] for source in sources]
    rows, length = masks[0].shape
    if rows == 1:
        return Rows(tuple((len(each),) for each in tilings))
    if len(sources) == 1 and len(set(tilings[0])) == 1:
        most = length // tilings[0][0].placeholders
        if len(tilings[0]) == rows * most:  # no row can hold more, so none holds fewer
            return Rows(((most,) * rows,))
    text = ~either(masks)
    if attention_mask is not None:
        text = text & attention_mask[:, -length:].to(device=text.device, dtype=torch.bool)
    found = torch.stack([*(mask.sum(1) for mask in masks), text.sum(1)], dim=1)
    table = found.tolist()  # the one read of placeholders in a prefill
    counts = tuple(
        share_out([row[number] for row in table], [tiling.placeholders for tiling in each], source.results.kind)
        for number, (source, each) in enumerate(zip(sources, tilings, strict=True))
    )
    rows_alike = len(set(members_of(sources, counts))) == 1
    return Rows(counts, None if rows_alike else tuple(map(sum, table)))


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


def lay_out(call: Call, run: Run, planner: Planner, positions: Tensor) -> None:
    """Works out the first segment of a call with images, and everything that later cuts count with.

    Args:
        call: With placeholders and encoded images; gets its rows and plans.
        run: Gets its first segment, cut layers, labels, counts, and what each row has lost.
        planner: Gives each row its plan.
        positions: ``[B or 1, L]`` position ids before anything of this call is dropped.
    """
    where, sources = call.placeholders, list(call.sources.values())
    assert where is not None  # a call with images
    call.rows = rows = count_rows(sources, run.attention_mask)
    members = members_of(sources, rows.counts)
    plans = {row: planner.row(row) for row in set(members)}
    call.plans = tuple(plans[row] for row in members)
    run.cut_layers = _cut_layers(call.plans)
    run.length = where.shape[1]
    run.visual = [0 if plan is None else plan.entry_tokens for plan in call.plans]
    codes = _codes_of_columns(sources)
    visual, kept = where, torch.ones_like(where)
    if codes is not None:
        visual, kept = where & (codes >= 0), ~where | (codes != DROPPED)
    positions = positions - (~kept).cumsum(1)
    lengths = _book_entry(run, rows, [sum(image.lost for image in row) for row in members], where.device)
    if rows.tokens is not None and run.attention_mask is not None:
        kept = kept & (where | run.attention_mask[:, -run.length :].to(device=where.device, dtype=torch.bool))
    run.text_tail = _text_tail(kept & ~where)
    columns, valid = compact(kept, max(run.slots), ragged=lengths is not None)
    visual = visual.gather(1, columns)
    visual = visual if valid is None else visual & valid
    positions = positions.expand(where.shape[0], -1).gather(1, columns)
    run.segments = [Segment(columns, valid, places_of(visual, max(run.visual)), lengths, positions)]
    _label(call, run, codes)


def _cut_layers(plans: Sequence[Plan | None]) -> tuple[int, ...]:
    return tuple(sorted({cut.layer for plan in plans if plan is not None for cut in plan.decoder}))


def _codes_of_columns(sources: Sequence[Source]) -> Tensor | None:
    """``[B, L]`` int64: the code of each placeholder, whatever elsewhere; None where every placeholder stays."""
    found = None
    if all(source.results.codes is None for source in sources):
        return None
    for source in sources:
        own = _codes_of_source(source)
        found = own if found is None else torch.where(source.where, own, found)
    return found


def _codes_of_source(source: Source) -> Tensor:
    codes, where = source.results.codes, source.where
    if codes is None:
        return torch.zeros_like(where, dtype=torch.int64)
    if source.origin is not None:
        each = codes.split([image.tiling.placeholders for image in source.results.images])
        codes = torch.cat([each[image] for image in source.origin])
    number = (where.flatten().cumsum(0) - 1).clamp(min=0, max=codes.shape[0] - 1)
    return codes.to(where.device).gather(0, number).view_as(where)


def _book_entry(run: Run, rows: Rows, lost: list[int], device: torch.device) -> Tensor | None:
    """Books what each row loses before the language model; returns the rows' visual tokens where ragged."""
    if rows.tokens is None:
        run.slots = [run.length - tokens for tokens in lost]
        run.entry_dropped = run.entry_dropped + lost[0]
        return None
    run.slots = [tokens - fewer for tokens, fewer in zip(rows.tokens, lost, strict=True)]
    run.entry_dropped = run.entry_dropped + on_device(lost, device)[:, None]
    return on_device(run.visual, device)


def _text_tail(text: Tensor) -> Tensor:
    """How many columns at the end are True in every row of ``[B, L]`` bool."""
    return text.all(0).flip(0).to(torch.int64).cumprod(0).sum()


def _label(call: Call, run: Run, codes: Tensor | None) -> None:
    """Gives the visual tokens of the first segment their clusters, counted from 0 in each row; -1 past a row's own."""
    if not any(cut.stage == "co_prune" for plan in call.plans if plan is not None for cut in plan.decoder):
        return
    segment, sources = run.segment, list(call.sources.values())
    if codes is None or not any(source.results.labels for source in sources):
        # No image has anything to cut by itself, all of them together have a token or two: each stands for itself.
        run.clusters = max(run.visual)
        run.labels = torch.arange(run.clusters, device=segment.columns.device).expand_as(segment.visual)
        return
    codes = codes.gather(1, segment.columns).gather(1, segment.visual)
    assert call.rows is not None  # counted by now
    counts, labels, before = call.rows.counts, None, [0] * len(run.visual)
    for source, count in zip(sources, counts, strict=True):
        is_own = source.where.gather(1, segment.columns).gather(1, segment.visual)
        own, clusters = _labels_of_source(source, count, codes, is_own, ragged=call.rows.tokens is not None)
        if labels is not None:
            own = torch.where(is_own, own + on_device(before, own.device)[:, None], labels)
        labels, before = own, [first + more for first, more in zip(before, clusters, strict=True)]
    run.clusters, run.labels = max(before), labels
    if segment.lengths is not None and labels is not None:
        beyond = torch.arange(labels.shape[1], device=labels.device) >= segment.lengths[:, None]
        run.labels = labels.masked_fill(beyond, -1)


def _labels_of_source(
    source: Source, count: Sequence[int], codes: Tensor, is_own: Tensor, *, ragged: bool
) -> tuple[Tensor, list[int]]:
    """Labels of a source's tokens, counted from 0 in each row, and how many each row has; arbitrary elsewhere."""
    encoded = source.results
    if not encoded.labels:  # beside others that are clustered, each of its tokens stands for itself
        kept = [sum(image.plan.entry_tokens for image in row) for row in by_row(source.images, count)]
        return (is_own.cumsum(1) - 1).clamp(min=0), kept
    firsts = list(accumulate(encoded.labels, initial=0))
    members = by_row(source.numbers, count)
    clusters = [sum(encoded.labels[image] for image in row) for row in members]
    if not ragged and source.origin is None:
        starts = torch.arange(len(clusters), device=codes.device) * clusters[0]
    else:
        starts = on_device([firsts[row[0]] if row else 0 for row in members], codes.device)
    return codes - starts[:, None], clusters


def row_cut(call: Call, run: Run, layer: int, device: torch.device) -> tuple[DecoderCut, Tensor | None, list[int]]:
    """The cut before ``layer``, with the most that any row keeps and recycles; how many each keeps, on the device (None
    where rows are alike); and how many it then has, on the host.

    Rows without images, and rows whose plan has nothing to cut here, keep what they have.
    """
    cuts = [next((cut for cut in plan.decoder if cut.layer == layer), None) if plan else None for plan in call.plans]
    stay = [visual if cut is None else cut.keep for cut, visual in zip(cuts, run.visual, strict=True)]
    made = [0 if cut is None else cut.recycled for cut in cuts]
    cut = next(cut for cut in cuts if cut is not None)
    keeps = None if run.segment.lengths is None else on_device(stay, device)
    cut = replace(cut, keep=max(stay), recycled=max(made))
    return cut, keeps, [keep + recycled for keep, recycled in zip(stay, made, strict=True)]


def lost(run: Run, counts: list[int], device: torch.device) -> Tensor | int:
    """By how much a cut shortens each row, ``[B, 1]`` int64, or an int where rows are alike."""
    fewer = [had - has for had, has in zip(run.visual, counts, strict=True)]
    return fewer[0] if len(set(fewer)) == 1 else on_device(fewer, device)[:, None]


def after_cut(run: Run, counts: list[int]) -> int:
    """Books a cut that leaves ``counts`` visual tokens in the rows; returns the new physical length."""
    run.slots = [slots - had + has for slots, had, has in zip(run.slots, run.visual, counts, strict=True)]
    run.visual = counts
    return max(run.slots)
