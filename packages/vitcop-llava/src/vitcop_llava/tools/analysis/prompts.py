"""Where the visual tokens of a prompt stand, which unit each belongs to, and which text comes after them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcop_core.tokens import places_of
from vitcop_llava.families import Parts
from vitcop_llava.families.base import Squares
from vitcop_llava.families.clips import read_clips
from vitcop_llava.families.grids import GRIDS, check_patches, read_grids
from vitcop_llava.families.image_sizes import check_sizes, read_sizes
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.checks import PIXELS, check_feature_choice
from vitcop_llava.hooks.counting import count_images, either
from vitcop_llava.hooks.vision import image_tilings


@dataclass(frozen=True, eq=False)
class PromptMedia:
    """All images of a prompt, or all clips, in the order in which the tower sees them.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        tilings: How each lies in units.
        pool: Side of the square of patches that each token stands for; 1 where tokens are patches or interpolated.
        where: ``[B, L]`` bool, the placeholders.
        counts: How many images or clips each row has.
    """

    kind: str
    tilings: list[Tiling]
    pool: int
    where: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PromptRow:
    """One row: ``columns`` [n] of its visual tokens, its ``images`` as (source, number), the ``grid`` of the first."""

    columns: NDArray[np.int64]
    images: list[tuple[int, int]]
    grid: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that is about to be run.

    Attributes:
        inputs: What the base model's forward takes.
        sources: Its images, its clips, or both.
        rows: Row by row.
        padding: ``[B, L]`` bool, False in padding; None for none.
        last: The last token of each row: ``[B, 1]`` int64 columns, and weights of 1.
        text: The text after the last image, or else the last token: ``[B, t]`` int64 columns, arbitrary where the
            weights, ``[B, t]`` float32, are 0.
    """

    inputs: dict[str, Any]
    sources: list[PromptMedia]
    rows: list[PromptRow]
    padding: Tensor | None
    last: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor]


def lay_out_prompt(parts: Parts, inputs: Mapping[str, Any]) -> Prompt:
    """Check the inputs of a model, and work out where everything stands.

    Raises:
        TypeError: ``input_ids`` are missing, or an input is of the wrong type.
        ValueError: A row has neither image nor clip, prompt and images disagree, a cache is given, or the features
            are not those of the model's configuration.
    """
    given = dict(inputs)
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        what = f"of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"input_ids must be a tensor [rows, length], got {what}")
    for name in ("past_key_values", "cache", "mm_encoder_outputs", "inputs_embeds"):
        if given.get(name) is not None:
            raise ValueError(f"{name} must not be given; a prompt is observed whole, from ids and pixels")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
        what = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask must be of the shape of input_ids, {tuple(ids.shape)}, got {what}")
    check_feature_choice(given, parts)
    sources = [_source(parts, kind, given) for kind in parts.token_ids if _has(given, kind)]
    if not sources:
        raise ValueError("pixel_values must be given; what is observed is how a model looks at images")
    padding = None if mask is None or bool(mask.bool().all()) else mask.bool()
    visual = either([source.where for source in sources])
    rows = [_row(sources, number) for number in range(ids.shape[0])]
    last, text = _text(visual, padding)
    return Prompt(given, sources, rows, padding, last, text)


def _has(given: Mapping[str, Any], kind: str) -> bool:
    pixels = given.get(PIXELS[kind])
    return pixels is not None and len(pixels) > 0


def _source(parts: Parts, kind: str, given: dict[str, Any]) -> PromptMedia:
    pixels, pool = given[PIXELS[kind]], 1
    if parts.squares is not None:
        tilings, pool = _of_squares(parts.squares, kind, given), parts.squares.side
    elif kind == "video":
        assert parts.video is not None  # else it is none of the model's kinds
        frames, given[PIXELS[kind]] = read_clips(pixels, parts.video.frame_size)
        if parts.video.ending:  # the unpruned model ends each clip with a newline, so it must not see them as one
            if len({*frames}) > 1:
                raise ValueError(
                    f"{PIXELS[kind]} must be clips of one length to an unpruned model of this kind, got {frames} "
                    "frames; observe one prompt at a time"
                )
            given[PIXELS[kind]] = given[PIXELS[kind]].flatten(0, 1).unflatten(0, (len(frames), -1))
        tilings, pool = [parts.video.clip(count) for count in frames], parts.video.pool or 1
    elif parts.anyres is not None:
        sizes = read_sizes(given.get("image_sizes"))
        tilings = image_tilings(dict(given), parts.anyres, sizes)
        check_sizes(sizes, tilings, pixels, parts.anyres.tile_size)
    else:
        tilings = [parts.tiling] * len(pixels)
    where = given["input_ids"] == parts.token_ids[kind]
    counts = count_images(where.sum(1).tolist(), [tiling.placeholders for tiling in tilings], kind)
    if sum(counts) != len(tilings):
        raise ValueError(
            f"{PIXELS[kind]} must be the {kind}s of the prompt, which has placeholders for {sum(counts)}, "
            f"got {len(tilings)}"
        )
    return PromptMedia(kind, tilings, pool, where, counts)


def _of_squares(squares: Squares, kind: str, given: Mapping[str, Any]) -> list[Tiling]:
    """Return how images or clips lie that come as patches."""
    grids = read_grids(GRIDS[kind], given.get(GRIDS[kind]), squares)
    check_patches(PIXELS[kind], given[PIXELS[kind]], GRIDS[kind], grids)
    if kind == "video":
        return [squares.clip(*grid) for grid in grids]
    return [squares.image(rows, columns) for _, rows, columns in grids]


def _row(sources: list[PromptMedia], row: int) -> PromptRow:
    found: list[tuple[int, tuple[int, int], NDArray[np.int64]]] = []
    for number, source in enumerate(sources):
        columns = source.where[row].nonzero()[:, 0].cpu().numpy()
        first, start = sum(source.counts[:row]), 0
        for image in range(first, first + source.counts[row]):
            tiling = source.tilings[image]
            own = columns[start : start + tiling.placeholders]
            start += tiling.placeholders
            found.append((int(own[0]), (number, image), np.delete(own, tiling.newline_places)))
    if not found:
        raise ValueError(f"input_ids[{row}] must have an image or a clip, got none")
    found.sort(key=lambda each: each[0])
    number, image = found[0][1]
    grid = sources[number].tilings[image].grid
    return PromptRow(np.concatenate([each[2] for each in found]), [each[1] for each in found], grid)


def _text(visual: Tensor, padding: Tensor | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return columns and weights of the last token, and of the text after the last image."""
    column = torch.arange(visual.shape[1], device=visual.device)
    real = torch.ones_like(visual) if padding is None else padding
    last = (real * column).amax(dim=1, keepdim=True)
    text = real & (column > (visual * column).amax(dim=1, keepdim=True))
    text = torch.where(text.any(dim=1, keepdim=True), text, column == last)
    most = int(text.sum(1).max())
    places = places_of(text, most)
    return (last, torch.ones_like(last, dtype=torch.float32)), (places, text.gather(1, places).float())
