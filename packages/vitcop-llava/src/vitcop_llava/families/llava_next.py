"""LLaVA-NeXT (LLaVA-1.6): as LLaVA-1.5, but an image is tiled, without its padding, a newline after each line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitcop_llava.families.base import Anyres, Parts
from vitcop_llava.families.clip import clip_parts
from vitcop_llava.families.tiling import check_pinpoints


def locate(model: Any) -> Parts:
    """Return the parts of a ``LlavaNextForConditionalGeneration``.

    Raises:
        ValueError: A part cannot be pruned (see :func:`~vitcop_llava.families.clip.clip_parts`), or the model's
            ``image_grid_pinpoints`` are not multiples of its tile size.
    """
    vision = model.config.vision_config
    pinpoints = tuple((int(height), int(width)) for height, width in model.config.image_grid_pinpoints)
    try:
        check_pinpoints(pinpoints, vision.image_size)
    except ValueError as error:
        raise ValueError(f"model.config: {error}") from error
    return replace(clip_parts(model), anyres=Anyres(pinpoints, vision.image_size, vision.patch_size))
