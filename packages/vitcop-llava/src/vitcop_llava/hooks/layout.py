"""How a batch lies: which row holds which images and clips, what each row keeps, where every token stands.

Counts come from shapes, plans and `counting`, which reads once a prefill. Positions are worked out here and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vitcop_core import DecoderCut, Plan
from vitcop_core.tokens import places_of
from vitcop_llava.families import Parts
from vitcop_llava.hooks import aligned
from vitcop_llava.hooks.counting import by_row, either
from vitcop_llava.hooks.kept import DROPPED
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.hooks.runs import Prefill
from vitcop_llava.hooks.state import Call, Rows, Source
from vitcop_llava.sequence.cache import HeldLayer
from vitcop_llava.sequence.rotary import by_token
from vitcop_llava.sequence.segment import Segment, compact, on_device, take

Given = dict[str, Any]


def find_origin(source: Source, features: Sequence[Tensor]) -> None:
    """Find out which encoded image each feature is, where `generate` repeated the images of each row.

    `generate` repeats the tensors themselves, in groups that keep the order, so an image is known by being the same
    object. Where each was moved by itself they are not, and the rows have to tell.

    Args:
        source: Encoded; gets its ``origin``, or how often its rows were repeated.
        features: The features as they came, an entry an image.

    Raises:
        ValueError: The entries are not those that were encoded.
    """
    count = len(source.results.images)
    if len(features) == count:
        return
    features = [*features]  # rows of one tensor are objects for as long as they are held
    numbers: dict[int, int] = {}
    origin = [numbers.setdefault(id(feature), len(numbers)) for feature in features]
    if len(numbers) == count:
        source.origin = origin
    elif count and len(numbers) == len(features) and len(features) % count == 0:
        source.repeats = len(features) // count
    else:
        raise ValueError(
            f"mm_encoder_outputs must hold the {count} images that were encoded, got {len(features)} image features, "
            f"{len(numbers)} of them different"
        )


def placeholders(given: Given, parts: Parts, token_id: int) -> Tensor:
    """Return where the placeholders of one kind stand: ``[B, L]`` bool."""
    ids: Tensor | None = given.get("input_ids")
    if ids is not None:
        return ids == token_id
    embeds: Tensor = given["inputs_embeds"]
    token: Tensor = parts.embeddings(torch.full((), token_id, dtype=torch.int64, device=embeds.device))
    return (embeds == token).all(-1)


def logical_positions(position_ids: Tensor | None, past: int, length: int, device: torch.device) -> Tensor:
    """Return the caller's position ids ``[B or 1, L]``, ``[B, L, 3]`` where they have axes, or those that the unpruned
    model would give itself.
    """
    if position_ids is not None:
        return by_token(position_ids)
    return torch.arange(past, past + length, device=device)[None]


def lay_out(
    call: Call,
    planner: Planner,
    rows: Rows,
    layers: Sequence[HeldLayer],
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    *,
    keeps_positions: bool = False,
) -> Prefill:
    """Work out the first segment of a call with images, and everything that later cuts count with.

    Args:
        call: With placeholders and encoded images; gets its plans.
        planner: Gives each row its plan.
        rows: What each row holds.
        layers: Of the cache; empty where there is none.
        attention_mask: The caller's ``[B, past + L]``, or None, also where it hides nothing.
        position_ids: The caller's, ``[B or 1, L]`` or ``[A, B, L]``, or None.
        keeps_positions: Whether tokens keep their positions, whatever is dropped before them.
    """
    call.rows, sources = rows, [*call.sources.values()]
    call.placeholders = where = either([source.where for source in sources])
    past, earlier = (call.past, layers[0].entry_dropped) if layers else (0, 0)
    first = past if position_ids is None and not keeps_positions else rows.first
    plans = {row: planner.row(row) for row in set(rows.members)}
    call.plans = tuple(plans[row] for row in rows.members)
    lost_here = [sum(image.lost for image in row) for row in rows.members]
    had = rows.tokens or [where.shape[1]] * len(rows.members)
    run = Prefill(
        layers,
        attention_mask,
        past,
        length=where.shape[1],
        continuation=call.continuation,
        placeholders=where,
        cut_layers=_cut_layers(call.plans),
        entry_dropped=earlier if keeps_positions else earlier + _lost_at_entry(rows, lost_here, where.device),
        keeps_positions=keeps_positions,
        shifts=[layer.shift for layer in layers],
        visual=[0 if plan is None else plan.entry_tokens for plan in call.plans],
        slots=[before - fewer for before, fewer in zip(had, lost_here, strict=True)],
    )
    needs_labels = planner.needs_labels(call.plans)
    if rows.span is not None and aligned.is_aligned(sources):
        first = first - earlier if first is not None and isinstance(earlier, int) else None
        positions = None
        if first is None:
            positions = logical_positions(position_ids, past, run.length, where.device) - earlier
        clustered = aligned.enter(run, sources[0], rows.span, first, positions)
    else:
        positions = logical_positions(position_ids, past, run.length, where.device) - earlier
        codes = _enter(run, sources, positions, ragged=rows.tokens is not None)
        clustered = _clusters(run, sources, codes) if needs_labels and codes is not None else None
    if needs_labels:
        run.clusters, run.labels = _each_its_own(run) if clustered is None else clustered
    return run


def _each_its_own(run: Prefill) -> tuple[int, Tensor]:
    """Return labels that make every visual token a cluster: no image has anything to cut by itself, all together have
    a token or two.
    """
    most, device = max(run.visual), run.placeholders.device
    numbers = torch.arange(most, device=device) if run.aligned is None else run.aligned.numbers[:most]
    return most, numbers.expand(len(run.visual), -1)


def _enter(run: Prefill, sources: Sequence[Source], positions: Tensor, *, ragged: bool) -> Tensor | None:
    """Work out the first segment where rows are not aligned.

    Args:
        run: With its counts of tokens; gets the segment and the tail of text.
        sources: Encoded.
        positions: ``[B or 1, L]`` position ids before anything of this call is dropped, ``[B, L, 3]`` where they have
            axes.
        ragged: Whether rows differ in length.

    Returns:
        The codes of all columns; see `_codes_of_columns`.
    """
    codes, where = _codes_of_columns(sources), run.placeholders
    visual, kept = where, torch.ones_like(where)
    if codes is not None:
        visual, kept = where & (codes >= 0), ~where | (codes != DROPPED)
    if not run.keeps_positions:
        positions = positions - (~kept).cumsum(1)
    if ragged and run.attention_mask is not None:
        kept = kept & run.attention_mask[:, -run.length :].to(device=where.device, dtype=torch.bool)
    run.text_tail = _text_tail(kept & ~where)
    lengths = on_device(run.visual, where.device) if ragged else None
    columns, valid = compact(kept, max(run.slots), ragged=lengths is not None)
    visual = visual.gather(1, columns)
    visual = visual if valid is None else visual & valid
    positions = take(positions.expand(where.shape[0], *positions.shape[1:]), columns)
    run.segments.append(Segment(columns, valid, places_of(visual, max(run.visual)), lengths, positions))
    return codes


def _lost_at_entry(rows: Rows, lost: list[int], device: torch.device) -> Tensor | int:
    """Return what each row loses before the language model, ``[B, 1]`` int64, or an int where rows are alike."""
    return lost[0] if rows.tokens is None else on_device(lost, device)[:, None]


def _cut_layers(plans: Sequence[Plan | None]) -> tuple[int, ...]:
    return tuple(sorted({cut.layer for plan in plans if plan is not None for cut in plan.decoder}))


def _codes_of_columns(sources: Sequence[Source]) -> Tensor | None:
    """Return ``[B, L]`` int64: the code of each placeholder, whatever elsewhere; None where every placeholder stays."""
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
        codes = torch.cat(source.batch_codes(codes))
    number = (where.flatten().cumsum(0) - 1).clamp(min=0, max=codes.shape[0] - 1)
    return codes.to(where.device).gather(0, number).view_as(where)


def _text_tail(text: Tensor) -> Tensor:
    """Return how many columns at the end are True in every row of ``[B, L]`` bool."""
    return text.all(0).flip(0).to(torch.int64).cumprod(0).sum()


def _clusters(run: Prefill, sources: Sequence[Source], codes: Tensor) -> tuple[int, Tensor] | None:
    """Return the most clusters of any row, and those of the visual tokens of the first segment, counted from 0 in each
    row; -1 past a row's own. None where nothing was clustered.
    """
    if not any(source.results.labels for source in sources):
        return None
    segment, slots = run.segment, run.segment.visual
    codes = codes.gather(1, segment.columns).gather(1, slots)
    labels, before = codes, [0] * len(run.visual)
    for source in sources:
        is_own = source.where.gather(1, segment.columns).gather(1, slots)
        own, clusters = _labels_of_source(source, codes, is_own, ragged=segment.lengths is not None)
        if source is not sources[0]:
            own = torch.where(is_own, own + on_device(before, own.device)[:, None], labels)
        labels, before = own, [first + more for first, more in zip(before, clusters, strict=True)]
    if segment.lengths is not None:
        beyond = torch.arange(labels.shape[1], device=labels.device) >= segment.lengths[:, None]
        labels = labels.masked_fill(beyond, -1)
    return max(before), labels


def _labels_of_source(source: Source, codes: Tensor, is_own: Tensor, *, ragged: bool) -> tuple[Tensor, list[int]]:
    """Return the labels of a source's tokens, counted from 0 in each row, and how many each row has; arbitrary
    elsewhere.
    """
    encoded = source.results
    if not encoded.labels:  # beside others that are clustered, each of its tokens stands for itself
        kept = [sum(image.plan.entry_tokens for image in row) for row in by_row(source.images, source.counts)]
        return (is_own.cumsum(1) - 1).clamp(min=0), kept
    clusters = [sum(encoded.labels[image] for image in row) for row in by_row(source.numbers, source.counts)]
    if not ragged:
        starts = torch.arange(len(clusters), device=codes.device) * clusters[0]
    else:
        starts = on_device([*accumulate(clusters, initial=0)][:-1], codes.device)
    return codes - starts[:, None], clusters


def row_cut(call: Call, run: Prefill, layer: int, device: torch.device) -> tuple[DecoderCut, Tensor | None, list[int]]:
    """Return the cut before ``layer``, with the most that any row keeps and recycles; how many each keeps, on the
    device (None where rows are alike); and how many it then has, on the host.

    Rows without images, and rows whose plan has nothing to cut here, keep what they have.
    """
    cuts = [next((cut for cut in plan.decoder if cut.layer == layer), None) if plan else None for plan in call.plans]
    stay = [visual if cut is None else cut.keep for cut, visual in zip(cuts, run.visual, strict=True)]
    made = [0 if cut is None else cut.recycled for cut in cuts]
    cut = next(cut for cut in cuts if cut is not None)
    keeps = None if run.segment.lengths is None else on_device(stay, device)
    if (cut.keep, cut.recycled) != (max(stay), max(made)):
        cut = replace(cut, keep=max(stay), recycled=max(made))
    return cut, keeps, [keep + recycled for keep, recycled in zip(stay, made, strict=True)]


def cut_row(call: Call) -> int | None:
    """Return the first row that loses visual tokens, on the way in or in a layer; None where none does."""
    assert call.rows is not None  # it was laid out
    for row, (plan, images) in enumerate(zip(call.plans, call.rows.members, strict=True)):
        if plan is not None and (plan.decoder or any(image.lost for image in images)):
            return row
    return None


def lost(run: Prefill, counts: list[int], device: torch.device) -> Tensor | int:
    """Return by how much a cut shortens each row, ``[B, 1]`` int64, or an int where rows are alike."""
    fewer = [had - has for had, has in zip(run.visual, counts, strict=True)]
    return fewer[0] if len(set(fewer)) == 1 else on_device(fewer, device)[:, None]


def after_cut(run: Prefill, counts: list[int]) -> int:
    """Book a cut that leaves ``counts`` visual tokens in the rows; returns the new physical length."""
    run.slots = [slots - had + has for slots, had, has in zip(run.slots, run.visual, counts, strict=True)]
    run.visual = counts
    return max(run.slots)
