"""Static caches of small models: methods whose layers they are filled under, prompts in them, and tokens after that."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import StaticCache

from vitcop_llava import DivPrune, FastV, Method, PyramidDrop, SparseVLM, VisionZip, ViTCoP

CUTS = ViTCoP(ratios=(0.5, 0.25, 0.1), layers=(2, 4), cutoff_distance=3.0)
METHODS: list[Method] = [
    CUTS,
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
]


def filled(model: Any, given: dict[str, Any], room: int = 240) -> tuple[StaticCache, Tensor]:
    """A static cache with a prompt, and the token after it."""
    cache = StaticCache(config=model.config.text_config, max_cache_len=room)
    return cache, model(**given, past_key_values=cache).logits[:, -1:].argmax(-1)


def step(model: Any, cache: Any, token: Tensor, **more: Any) -> Tensor:
    """The logits after one token more."""
    logits: Tensor = model(input_ids=token, past_key_values=cache, **more).logits
    return logits
