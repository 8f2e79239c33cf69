"""LLaVA-NeXT-Video: LLaVA-NeXT for images, and clips whose frames are pooled before the projector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitcop_llava.families.base import Parts, VideoParts
from vitcop_llava.families.llava_next import locate as locate_images


def locate(model: Any) -> Parts:
    """Return the parts of a ``LlavaNextVideoForConditionalGeneration``.

    The model pools a frame's features by its ``spatial_pool_mode`` over squares of ``spatial_pool_stride``, and
    projects what comes out. Scores and keys are averaged over the same squares, whatever the mode: a maximum of keys or
    a learned convolution of scores would mean nothing.

    Raises:
        ValueError: A part cannot be pruned (see :func:`vitcop_llava.families.llava_next.locate`), or the squares are
            larger than a frame's grid.
    """
    parts, stride = locate_images(model), model.config.spatial_pool_stride
    rows, columns = parts.grid
    if not 1 <= stride <= min(rows, columns):
        raise ValueError(f"model must have a spatial_pool_stride from 1 to {min(rows, columns)}, got {stride!r}")
    video = VideoParts(
        token_id=model.config.video_token_id,
        grid=(rows // stride, columns // stride),
        pool=stride,
        frame_size=model.config.vision_config.image_size,
    )
    return replace(parts, video=video)
