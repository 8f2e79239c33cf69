"""What the language model would make of tokens before any has entered: keys of its first layer, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitcop_llava.families import Parts
from vitcop_llava.families.decoder import head_states
from vitcop_llava.hooks.active import without_tower
from vitcop_llava.weights.offloading import execution_device, weights_in_place


@torch.no_grad()
def entry_keys(parts: Parts, features: Tensor) -> Tensor:
    """Return the keys that the first decoder layer makes of features, each by itself.

    Args:
        parts: The model's.
        features: ``[C, k, w]``, what goes through the projector for a token.

    Returns:
        ``[C, G, k, e]``, not rotated, on the device of ``features``.
    """
    units, count, _ = features.shape
    taken = features if parts.squares is None else features.reshape(units * count * parts.squares.patches, -1)
    with without_tower():  # the hooks on the projector are for what it is called with by the model
        projected: Tensor = parts.projector(taken)
    return keys_of_first_layer(parts, projected.reshape(units, count, -1))


@torch.no_grad()
def keys_of_first_layer(parts: Parts, hidden: Tensor) -> Tensor:
    """Return the same of projected features: ``[C, k, d]`` to ``[C, G, k, e]``."""
    layer: Any = parts.decoder_layers[0]
    there = hidden if hidden.is_meta else hidden.to(execution_device(layer))
    with weights_in_place(layer, layer.self_attn):
        norm = getattr(layer, "input_layernorm", None)
        keys = head_states(layer.self_attn, there if norm is None else norm(there), "k")
    return keys.transpose(1, 2).to(hidden.device)
