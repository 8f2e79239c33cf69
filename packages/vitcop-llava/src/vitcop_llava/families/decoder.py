"""Decoders, judged by what they have and not by their class: what pruning needs of one, and how its attention sees.

Cuts rank tokens by keys from the cache, whatever made them. Methods that rank by attention need a few rows of it, which
are computed here from a layer's own projections, norms and rotation.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor

from vitcop_core import LanguageModelShape

_WHOLE, _WINDOWED = "full_attention", "sliding_attention"


def decoder_shape(config: Any) -> LanguageModelShape:
    """Return the sizes of a Llama-like language model; of a mixture, those of the experts that a token goes to."""
    heads, width, experts = config.num_attention_heads, config.intermediate_size, _number(config, "num_experts_per_tok")
    if experts:
        width = experts * (_number(config, "moe_intermediate_size") or width)
        width += _number(config, "shared_expert_intermediate_size")
    return LanguageModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=width,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _number(config: Any, name: str) -> int:
    found = getattr(config, name, None)
    return found if isinstance(found, int) else 0


def check_decoder(language_model: Any) -> None:
    """Raise unless cuts can be made between the layers of a language model.

    Raises:
        ValueError: Its layers take no rotary positions from outside, lack separate query and key projections, or
            do not all attend to tokens alone.
    """
    name = type(language_model).__name__
    layers, rotary = getattr(language_model, "layers", None), getattr(language_model, "rotary_emb", None)
    missing = "a rotary_emb and layers that share its positions"
    if layers is not None and rotary is not None and len(layers):
        # Further arguments tell rotary embeddings apart that differ from layer to layer.
        taken = [name for name in inspect.signature(rotary.forward).parameters if not name.startswith("kwargs")]
        layer = getattr(layers[0], "_checkpoint_wrapped_module", layers[0])  # torch's own way to forget activations
        is_shared = len(taken) == 2 and "position_embeddings" in inspect.signature(layer.forward).parameters
        missing = "" if is_shared else missing
    attention: Any = getattr(layers[0], "self_attn", None) if layers and not missing else None
    if not missing and not all(hasattr(attention, part) for part in ("q_proj", "k_proj")):
        missing = "self_attn.q_proj and self_attn.k_proj in every layer"
    if missing:
        raise ValueError(f"model must have a language model with {missing}, got a {name}")
    kinds = {*(getattr(language_model.config, "layer_types", None) or ())} - {_WHOLE, _WINDOWED}
    if kinds:
        raise ValueError(
            "model must have a language model whose layers all attend to tokens, of the whole prompt or of a window, "
            f"got a {name} with layers of {', '.join(sorted(kinds))}"
        )


def window_of(config: Any) -> int | None:
    """Return the longest sequence that every layer attends to as a whole; None where that is any."""
    kinds = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    return None if kinds and _WINDOWED not in kinds else window


# Attentions whose rows have been held against those of the model itself. How others treat queries and keys, or scores,
# cannot be seen from outside: some norm them, or leave out the rotation in some layers.
_SCORED = frozenset(
    f"{name}Attention"
    for name in "Llama Mistral Mixtral Qwen2 Qwen2Moe Qwen3 Qwen3Moe Cohere Gemma Granite GraniteMoe Olmo Olmo2 Olmoe "
    "FlexOlmo Glm Glm4 Glm4Moe Ernie4_5 Nemotron Phi Phimoe Starcoder2 SeedOss Helium StableLm BitNet Arcee AriaText "
    "Doge DiffLlama Cwm Jais2 SolarOpen Ministral Qwen2VL Qwen2_5_VL Qwen3VLText Qwen3VLMoeText".split()
)


def check_scoring(attention: Any) -> None:
    """Raise unless the attention of a decoder layer can be computed from its projections.

    Raises:
        ValueError: How it treats queries, keys and scores is not known here.
    """
    names = {kind.__name__ for kind in type(attention).__mro__}
    is_known = bool(names & _SCORED) and getattr(attention, "q_layernorm", None) is None
    if not is_known or getattr(attention, "attn_logit_softcapping", None) or _rotation(attention) is None:
        raise ValueError(
            f"model must have an attention that vitcop can compute, got a {type(attention).__name__}, which may norm, "
            "rotate or score in a way of its own; use a method that does not rank by attention, such as ViTCoP with "
            "saliency='key_norm', and no gradient checkpointing"
        )


def head_states(attention: Any, normed: Tensor, name: str) -> Tensor:
    """Return queries ("q") or keys ("k") of a layer's normed input ``[B, n, d]``: ``[B, n, heads, e]``, not rotated."""
    return as_heads(attention, getattr(attention, f"{name}_proj")(normed), name)


def as_heads(attention: Any, projected: Tensor, name: str) -> Tensor:
    """Return projected queries or keys ``[B, n, heads * e]`` as the layer has them before it rotates them, by head."""
    clip = getattr(getattr(attention, "config", None), "clip_qkv", None)
    states = projected if clip is None else projected.clamp(-clip, clip)
    norm: Any = getattr(attention, f"{name}_norm", None)
    weight: Tensor | None = getattr(norm, "weight", None)
    if weight is not None and weight.shape == states.shape[-1:]:  # of all heads together, as in OLMo 2
        states, norm = norm(states), None
    by_head = states.unflatten(-1, (-1, attention.head_dim))
    normed: Tensor = by_head if norm is None else norm(by_head)
    return normed


def rotate(attention: Any, states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate ``states`` [B, H, n, e] by ``cosines`` and ``sines`` [B, n, r] as the layer does; r may be less than e."""
    apply: Any = _rotation(attention)
    width = cosines.shape[-1]
    turned: Tensor = apply(states[..., :width], states[..., :width], cosines, sines)[0]
    return turned if width == states.shape[-1] else torch.cat([turned, states[..., width:]], dim=-1)


def _rotation(attention: Any) -> Any:
    # transformers keeps each model's own way, halves or interleaved, beside its attention.
    return getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
