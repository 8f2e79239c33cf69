"""How a batch lies: which row holds which images, what each row keeps, where every token stands.

Counts come from shapes and plans. Only where no shape tells how many images each row holds (rows with different
numbers, or rows whose text alone is as long as an image) are they read back from the device, once a prefill, before
anything is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitcop_core import DecoderCut, Method, Plan
from vitcop_llava.families import Parts
from vitcop_llava.sequence import Segment, compact, on_device, places_of
from vitcop_llava.state import Call, EncodedImages, Rows, Run

Given = dict[str, Any]


def check_call(given: Given, parts: Parts) -> None:
    """Raises for a call with images that cannot be pruned.

    Raises:
        ValueError: More images than the prompt has room for, a feature other than the configured one, or gradient
            checkpointing.
    """
    encoded = (given.get("mm_encoder_outputs") or {}).get("image")
    images = len(given["pixel_values"] if encoded is None else encoded.pooler_output)
    ids = given.get("input_ids")
    room = (given["inputs_embeds"][..., 0] if ids is None else ids).numel()
    if images * parts.visual_tokens > room:  # the reverse takes counting placeholders, which transformers does
        raise ValueError(
            f"pixel_values: {images} images stand for {images * parts.visual_tokens} placeholders in input_ids, which "
            f"has {room} tokens in all; prompt and images must agree"
        )
    layer = given.get("vision_feature_layer")
    if layer is not None and layer not in (parts.feature_layer, parts.feature_layer - parts.vision_states):
        raise ValueError(f"vision_feature_layer: must be {parts.feature_layer}, as configured, got {layer!r}")
    if given.get("vision_feature_select_strategy") not in (None, "default"):
        raise ValueError(
            f"vision_feature_select_strategy: must be 'default', got {given['vision_feature_select_strategy']!r}"
        )
    if parts.language_model.training and getattr(parts.language_model, "gradient_checkpointing", False):
        raise ValueError(
            "model: gradient checkpointing runs the layers a second time outside the call that pruned them; "
            "switch it off, or call model.eval()"
        )


def check_encoded(encoded: EncodedImages | None, owner: int) -> EncodedImages:
    """Returns images that were encoded ahead of the call, if they were encoded under the same pruner, and whole.

    Raises:
        ValueError: They were not.
    """
    if encoded is None or encoded.owner != owner:
        raise ValueError(
            "mm_encoder_outputs: must be whole and encoded under the same pruner; images that were encoded outside the "
            "`with` block, or sliced by chunked prefill (prefill_chunk_size), cannot be pruned"
        )
    return encoded


def check_mask(given: Given, past: int) -> None:
    """Raises unless the attention mask is 2-D and covers the whole sequence, the cached part included.

    Raises:
        ValueError: It is not, or does not.
    """
    mask = given.get("attention_mask")
    if mask is None:
        return
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(f"attention_mask: must be 2-D, [batch, length], in a call that is pruned, got {shape}")
    tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
    if mask.shape[1] != past + tokens.shape[1]:
        raise ValueError(
            f"attention_mask: must cover {past + tokens.shape[1]} tokens ({past} in the cache, {tokens.shape[1]} new), "
            f"got shape {shape}"
        )


def image_origin(features: Sequence[Tensor], encoded: EncodedImages) -> list[int] | None:
    """Which encoded image each entry is, where `generate` repeated the images of each row; None: one to one.

    `generate` repeats the tensors themselves, in groups that keep the order, so an image is known by being the same
    object.

    Raises:
        ValueError: The entries are not those that were encoded.
    """
    if len(features) == encoded.count:
        return None
    numbers: dict[int, int] = {}
    origin = [numbers.setdefault(id(feature), len(numbers)) for feature in features]
    if len(numbers) != encoded.count:
        raise ValueError(
            f"mm_encoder_outputs: holds {len(features)} image features, {len(numbers)} of them different, "
            f"but {encoded.count} images were encoded"
        )
    return origin


def placeholders(given: Given, parts: Parts) -> Tensor:
    """Where the image placeholders stand: ``[B, L]`` bool."""
    ids: Tensor | None = given.get("input_ids")
    if ids is not None:
        return ids == parts.image_token_id
    embeds: Tensor = given["inputs_embeds"]
    token: Tensor = parts.embeddings(torch.full((), parts.image_token_id, dtype=torch.int64, device=embeds.device))
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


def count_rows(where: Tensor, images: int, tokens: int, attention_mask: Tensor | None) -> Rows:
    """How many images each row holds.

    Args:
        where: ``[B, L]`` bool, the placeholders.
        images: Images of the batch.
        tokens: Placeholders of one image.
        attention_mask: ``[B, past + L]`` or None.

    Raises:
        ValueError: A row's placeholders are not a whole number of images.
    """
    rows, length = where.shape
    if rows == 1:
        return Rows((images,))
    most = length // tokens
    if images == rows * most:  # no row can hold more, so none holds fewer
        return Rows((most,) * rows)
    text = ~where
    if attention_mask is not None:
        text = text & attention_mask[:, -length:].to(device=where.device, dtype=torch.bool)
    counts = torch.stack([where.sum(1), text.sum(1)], dim=1).tolist()  # the one read of a prefill
    for row, (visual, _) in enumerate(counts):
        if visual % tokens:
            raise ValueError(f"input_ids: row {row} holds {visual} image placeholders, not a multiple of {tokens}")
    found = tuple(visual // tokens for visual, _ in counts)
    if len(set(found)) == 1:
        return Rows(found)
    return Rows(found, tuple(visual + words for visual, words in counts))


def lay_out(call: Call, run: Run, method: Method, num_layers: int, positions: Tensor) -> None:
    """Works out the first segment of a call with images, and everything that later cuts count with.

    Args:
        call: With placeholders and encoded images; gets its rows and plans.
        run: Gets its first segment, cut layers, labels, counts, and what each row has lost.
        method: Gives each row its plan.
        num_layers: Decoder layers.
        positions: ``[B or 1, L]`` position ids before anything of this call is dropped.
    """
    where, encoded = call.placeholders, call.encoded
    assert where is not None  # a call with images
    assert encoded is not None
    images = encoded.count if call.origin is None else len(call.origin)
    rows = count_rows(where, images, encoded.tokens, run.attention_mask)
    plans = {n: method.plan(num_layers, (encoded.tokens,) * n, images=n) if n else None for n in set(rows.images)}
    call.rows, call.plans = rows, tuple(plans[n] for n in rows.images)
    run.cut_layers = _cut_layers(call.plans)
    run.length = where.shape[1]
    run.visual = [n * encoded.kept for n in rows.images]
    run.clusters = max(rows.images) * encoded.clusters
    kept = torch.ones_like(where)
    if encoded.index is not None:
        patches = torch.zeros((encoded.count, encoded.tokens), dtype=torch.bool, device=encoded.index.device)
        patches = _in_batch(patches.scatter(1, encoded.index, True), call.origin).to(where.device).flatten()
        number = (where.flatten().cumsum(0) - 1).clamp(min=0, max=patches.shape[0] - 1)  # of each placeholder's patch
        kept = ~where | patches.gather(0, number).view_as(where)
    positions = positions - (~kept).cumsum(1)
    lengths = _book_entry(run, rows, encoded.tokens - encoded.kept, where.device)
    if rows.tokens is not None and run.attention_mask is not None:
        kept = kept & (where | run.attention_mask[:, -run.length :].to(device=where.device, dtype=torch.bool))
    run.text_tail = _text_tail(kept & ~where)
    columns, valid = compact(kept, max(run.slots), ragged=lengths is not None)
    visual = where.gather(1, columns)
    visual = visual if valid is None else visual & valid
    positions = positions.expand(where.shape[0], -1).gather(1, columns)
    run.segments = [Segment(columns, valid, places_of(visual, max(run.visual)), lengths, positions)]
    if encoded.labels is not None:
        run.labels = _row_labels(_in_batch(encoded.labels, call.origin), encoded.clusters, rows.images).to(where.device)


def _cut_layers(plans: Sequence[Plan | None]) -> tuple[int, ...]:
    return tuple(sorted({cut.layer for plan in plans if plan is not None for cut in plan.decoder}))


def _book_entry(run: Run, rows: Rows, lost: int, device: torch.device) -> Tensor | None:
    """Books ``lost`` tokens of each image before the language model; returns the rows' visual tokens where ragged."""
    if rows.tokens is None:
        run.slots = [run.length - n * lost for n in rows.images]
        run.entry_dropped = run.entry_dropped + rows.images[0] * lost
        return None
    run.slots = [tokens - n * lost for tokens, n in zip(rows.tokens, rows.images, strict=True)]
    run.entry_dropped = run.entry_dropped + on_device(rows.images, device)[:, None] * lost
    return on_device(run.visual, device)


def _text_tail(text: Tensor) -> Tensor:
    """How many columns at the end are True in every row of ``[B, L]`` bool."""
    return text.all(0).flip(0).to(torch.int64).cumprod(0).sum()


def _in_batch(per_image: Tensor, origin: list[int] | None) -> Tensor:
    """Rows of ``per_image`` [C, ...] for each image of the batch."""
    if origin is None:
        return per_image
    return per_image.index_select(0, on_device(origin, per_image.device))


def _row_labels(labels: Tensor, clusters: int, images: tuple[int, ...]) -> Tensor:
    """Cluster labels over each row, ``[images, n1]`` to ``[B, N]``: images apart, -1 past a row's own."""
    most = max(images)
    if len(set(images)) == 1:
        rows = labels.reshape(len(images), most, -1)
        present = None
    else:
        starts = [sum(images[:row]) for row in range(len(images))]
        table = [[start + k if k < n else -1 for k in range(most)] for start, n in zip(starts, images, strict=True)]
        index = on_device(table, labels.device)
        rows, present = labels[index.clamp(min=0)], index[..., None] >= 0
    shifted = rows + clusters * torch.arange(most, device=labels.device)[:, None]
    labelled = rows >= 0 if present is None else (rows >= 0) & present
    return torch.where(labelled, shifted, -1).flatten(1)


def row_cut(call: Call, run: Run, layer: int, device: torch.device) -> tuple[DecoderCut, Tensor | None, list[int]]:
    """The cut before ``layer``: with the most that any row keeps, how many each keeps (on the device, and on the host).

    Rows without images, and rows whose plan has nothing to cut here, keep what they have.
    """
    cuts = [next((cut for cut in plan.decoder if cut.layer == layer), None) if plan else None for plan in call.plans]
    counts = [visual if cut is None else cut.keep for cut, visual in zip(cuts, run.visual, strict=True)]
    cut = next(cut for cut in cuts if cut is not None)
    keeps = None if run.segment.lengths is None else on_device(counts, device)
    return replace(cut, keep=max(counts)), keeps, counts


def after_cut(run: Run, counts: list[int]) -> int:
    """Books a cut that leaves ``counts`` visual tokens in the rows; returns the new physical length."""
    run.slots = [slots - had + has for slots, had, has in zip(run.slots, run.visual, counts, strict=True)]
    run.visual = counts
    return max(run.slots)
