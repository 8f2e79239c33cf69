"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, and one run of placeholders an image."""

from __future__ import annotations

from typing import Any

from vitcop_llava.families.base import Parts
from vitcop_llava.families.clip import clip_parts


def locate(model: Any) -> Parts:
    """Return the parts of a ``LlavaForConditionalGeneration``.

    Raises:
        ValueError: A part cannot be pruned; see :func:`~vitcop_llava.families.clip.clip_parts`.
    """
    return clip_parts(model)
