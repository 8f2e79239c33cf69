"""What a plan allows: tower, projector and head as they are, and the bare layers at the plan's lengths.

Nothing is decided and nothing moved: the first tokens of the prompt stand for those that a method would keep. All
patches go through the projector, whatever the plan sends on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from vitcop_core import Plan
from vitcop_llava.families import Parts
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
    sizes = {name: inputs[name] for name in ("image_sizes",) if name in inputs}
    encode(inputs[PIXELS[prompt.kind]], **sizes, return_dict=True)
    hidden = parts.embeddings(inputs["input_ids"])
    cache, length = DynamicCache(config=parts.config), 0
    mask, rotary = None, None
    for layer, tokens in zip(parts.decoder_layers, plan.tokens_per_layer, strict=True):
        if length != tokens + prompt.text_tokens:
            length = tokens + prompt.text_tokens
            hidden = hidden[:, :length].contiguous()
            rotary = parts.rotary(hidden, torch.arange(length, device=hidden.device)[None])
            mask = segment_mask(parts.config, hidden, length, 0, None)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=cache, use_cache=True)
    norm: Any = language.norm
    logits: Tensor = model.lm_head(norm(hidden)[:, -1:])
    return logits
