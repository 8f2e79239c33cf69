"""What a plan allows: tower, projector and head as they are, and the bare layers at the plan's lengths.

Nothing is decided and nothing moved: the first tokens of the prompt stand for those that a method would keep. All
patches go through the projector, whatever the plan sends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from vitcop_core import Plan
from vitcop_llava.compat import CACHE
from vitcop_llava.families import Parts
from vitcop_llava.families.grids import GRIDS
from vitcop_llava.hooks.checks import PIXELS
from vitcop_llava.sequence.masks import segment_mask
from vitcop_llava.tools.benchmark.prompts import BenchPrompt


def run_oracle(model: Any, parts: Parts, prompt: BenchPrompt, plan: Plan) -> Tensor:
    """Run a prefill of the plan's lengths, for all rows alike.

    Returns:
        ``[B, 1, V]``, the logits of the last token; they mean nothing.
    """
    inputs, language, base = prompt.inputs, parts.language_model, parts.base
    encode: Any = base.get_video_features if prompt.kind == "video" else base.get_image_features
    sizes = {name: inputs[name] for name in ("image_sizes", GRIDS[prompt.kind]) if name in inputs}
    encoded = encode(inputs[PIXELS[prompt.kind]], **sizes, return_dict=True)
    # As Qwen3-VL's decoder adds them: to the visual tokens, after each of its first layers.
    added = [_by_row(each, prompt.batch) for each in getattr(encoded, "deepstack_features", None) or ()]
    hidden = parts.embeddings(inputs["input_ids"])
    cache, length = DynamicCache(config=parts.config), 0
    mask, rotary = None, None
    for layer, tokens in zip(parts.decoder_layers, plan.tokens_per_layer, strict=True):
        if length != tokens + prompt.text_tokens:
            length = tokens + prompt.text_tokens
            hidden = hidden[:, :length].contiguous()
            positions = torch.arange(length, device=hidden.device)[None]
            rotary = parts.rotary(hidden, positions.expand(3, 1, -1) if parts.keeps_positions else positions)
            mask = segment_mask(parts.config, hidden, length, 0, None)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, use_cache=True, **{CACHE: cache})
        if added:
            hidden[:, :tokens] += added.pop(0)[:, :tokens]
    norm: Any = language.norm
    logits: Tensor = model.lm_head(norm(hidden)[:, -1:])
    return logits


def _by_row(features: Tensor | Sequence[Tensor], rows: int) -> Tensor:
    """Return features of all images, each on its own or all in one tensor, as ``[B, tokens, d]``."""
    joined = features if isinstance(features, Tensor) else torch.cat([*features])
    by_row: Tensor = joined.unflatten(0, (rows, -1))
    return by_row
