"""LLaVA-OneVision: as LLaVA-NeXT, but large grids of tiles are interpolated, and so are the frames of clips.

Both happen behind the projector, so a token there is no patch but a mean of several. An image that shares its prompt
with others is one unit; it ends with a newline, and so does a clip.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from vitcop_core.shown import shown
from vitcop_llava.families import llava_next
from vitcop_llava.families.base import Parts, VideoParts

_PREFIX = "anyres_max_"

_POOL = 2
"""By how much the model shortens the sides of a frame."""


def locate(model: Any) -> Parts:
    """Return the parts of a ``LlavaOnevisionForConditionalGeneration``.

    Raises:
        ValueError: A part cannot be pruned (see :func:`~vitcop_llava.families.llava_next.locate`), or the model's
            ``vision_aspect_ratio`` names no number of tiles.
    """
    parts, config = llava_next.locate(model), model.config
    assert parts.anyres is not None  # of every model that tiles
    try:
        most = most_tiles(config.vision_aspect_ratio)
    except ValueError as error:
        raise ValueError(f"model.config: {error}") from error
    rows, columns = parts.grid
    video = VideoParts(
        token_id=config.video_token_id,
        grid=(math.ceil(rows / _POOL), math.ceil(columns / _POOL)),
        pool=None,
        frame_size=config.vision_config.image_size,
        ending=True,
        is_stacked=True,
    )
    return replace(parts, anyres=replace(parts.anyres, most=most, tiles_one=True), video=video)


def most_tiles(aspect_ratio: object) -> int:
    """Return how many tiles' worth of tokens an image may have beside its base.

    Args:
        aspect_ratio: ``vision_aspect_ratio``, such as ``"anyres_max_9"``.

    Raises:
        ValueError: It is of another form.
    """
    # As transformers reads it, by the characters that are left.
    digits = aspect_ratio.strip(_PREFIX) if isinstance(aspect_ratio, str) else ""
    if not digits.isdecimal() or int(digits) < 1:
        raise ValueError(f"vision_aspect_ratio must be {_PREFIX!r} and a number of tiles, got {shown(aspect_ratio)}")
    return int(digits)
