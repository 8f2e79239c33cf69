"""A batch of equal prompts for any supported model: text, and an image or a clip of random pixels in each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcop_llava.families import Parts
from vitcop_llava.families.base import Squares
from vitcop_llava.families.grids import GRIDS, Grid
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.checks import PIXELS

TEXT_BEFORE = 35
"""Of 60 tokens of text, those of LLaVA-1.5's system prompt, before the image; the question comes after it."""

_SYSTEM_SHARE = TEXT_BEFORE / 60
_WORDS = 1000
_TYPICAL = 32
"""Tokens on a side of an image that may have any size, where none is named."""


@dataclass(frozen=True, eq=False)
class BenchPrompt:
    """What every variant is given.

    Attributes:
        inputs: As ``forward`` takes them, on the model's device.
        tiling: How the image or clip of each row lies in units.
        text_tokens: Of each row, newlines of tiles apart.
        kind: ``"image"`` or ``"video"``.
        image_size: Width and height of each image in pixels; None where all images are of one size.
    """

    inputs: dict[str, Tensor]
    tiling: Tiling
    text_tokens: int
    kind: str
    image_size: tuple[int, int] | None = None

    @property
    def batch(self) -> int:
        """Rows."""
        return self.inputs["input_ids"].shape[0]


def make_prompt(
    model: Any,
    parts: Parts,
    *,
    batch: int = 1,
    text_tokens: int = 60,
    image_size: tuple[int, int] | None = None,
    frames: int | None = None,
    seed: int = 0,
) -> BenchPrompt:
    """Make random pixels, and random words around their placeholders.

    Args:
        model: Takes the prompt.
        parts: Of the model.
        batch: Rows.
        text_tokens: Of each row; seven of twelve come before the image.
        image_size: Width and height in pixels, for a model that sees images in their own sizes; None for the one with
            most tokens, or with 1,024 where there is no most.
        frames: Of a clip, for a model that reads them; None for an image.
        seed: Of pixels and words.

    Raises:
        ValueError: The model sees every image in one size, or reads no clips, and is asked to; or there is too little
            text.
    """
    if text_tokens < 2:
        raise ValueError(f"text_tokens must be at least 2, before and after the image, got {text_tokens}")
    tiling, pixels, grid = _visual(parts, batch, image_size, frames)
    kind = "image" if frames is None else "video"
    generator, dtype = torch.Generator().manual_seed(seed), next(model.parameters()).dtype
    # A placeholder among the words would be one too many.
    known = [*set(range(min(_WORDS, parts.config.vocab_size))) - set(parts.token_ids.values())]
    drawn = torch.randint(len(known), (batch, text_tokens), generator=generator, device="cpu")
    words = torch.tensor(known, device="cpu")[drawn]
    places = torch.full((batch, tiling.placeholders), parts.token_ids[kind], device="cpu")
    before = min(max(round(text_tokens * _SYSTEM_SHARE), 1), text_tokens - 1)
    ids = torch.cat([words[:, :before], places, words[:, before:]], dim=1).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    noise = torch.randn(pixels, generator=generator, dtype=torch.float32, device="cpu")
    inputs[PIXELS[kind]] = noise.to(model.device, dtype)
    if grid is not None:
        inputs[GRIDS[kind]] = torch.tensor([grid] * batch, device=model.device)
        inputs["mm_token_type_ids"] = (ids == parts.image_token_id).int()
        vision: Any = parts.vision_tower.config
        image_size = (grid[2] * vision.patch_size, grid[1] * vision.patch_size)
    if parts.anyres is not None and frames is None:
        width, height = image_size = image_size or largest_image(parts)
        inputs["image_sizes"] = torch.tensor([[height, width]] * batch, device=model.device)
    return BenchPrompt(inputs, tiling, text_tokens, kind, image_size)


def largest_image(parts: Parts) -> tuple[int, int]:
    """Return the width and height of an image that fills the pinpoint with most tokens."""
    anyres = parts.anyres
    assert anyres is not None  # asked for by callers
    height, width = max(anyres.pinpoints, key=lambda point: anyres.tile(*point).tokens)
    return width, height


def _visual(
    parts: Parts, batch: int, image_size: tuple[int, int] | None, frames: int | None
) -> tuple[Tiling, tuple[int, ...], Grid | None]:
    """Return how an image or clip lies, the shape of the batch's pixels, and its grid where it comes as patches."""
    vision: Any = parts.vision_tower.config
    if parts.squares is not None:
        if frames is not None:
            raise ValueError(f"frames must be left out for a model that takes clips as patches, got {frames}")
        return _flat(parts.squares, vision, batch, image_size)
    side = vision.image_size
    if frames is not None:
        if parts.video is None:
            raise ValueError(f"frames must be left out for a model that reads no clips, got {frames}")
        if image_size is not None:
            raise ValueError(f"image_size must be None with frames, which make a clip, got {image_size}")
        return parts.video.clip(frames), (batch, frames, 3, side, side), None
    if parts.anyres is None:
        if image_size is not None:
            raise ValueError(
                f"image_size must be None for a model that sees every image at {side} x {side} pixels, got {image_size}"
            )
        return parts.tiling, (batch, 3, side, side), None
    width, height = image_size or largest_image(parts)
    tiling = parts.anyres.tile(height, width)
    return tiling, (batch, len(tiling.boxes), 3, side, side), None


def _flat(
    squares: Squares, vision: Any, batch: int, image_size: tuple[int, int] | None
) -> tuple[Tiling, tuple[int, ...], Grid]:
    """Return the same of an image as patches: its sides are rounded to whole tokens, as Qwen's processors round them.

    How many tokens an image may have is a setting of processors, and the bench has none.
    """
    pixels = vision.patch_size * squares.side
    width, height = image_size or (_TYPICAL * pixels,) * 2
    rows, columns = (max(1, round(side / pixels)) * squares.side for side in (height, width))
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return squares.image(rows, columns), (batch * rows * columns, patch), (1, rows, columns)
