"""ViP-LLaVA: as LLaVA-1.5, but the projector takes the outputs of several vision layers side by side."""

from __future__ import annotations

from typing import Any

from vitcop_llava.families.base import Parts
from vitcop_llava.families.clip import clip_parts

_OBSTACLE = (
    "the outputs of several layers side by side as its feature, which no one layer's attention ranks; use a method "
    "that does not read the tower, such as FastV or DivPrune"
)


def locate(model: Any) -> Parts:
    """Return the parts of a ``VipLlavaForConditionalGeneration``, without a layer that Stage I could read.

    Raises:
        ValueError: A part cannot be pruned; see :func:`~vitcop_llava.families.clip.clip_parts`.
    """
    return clip_parts(model, _OBSTACLE)
