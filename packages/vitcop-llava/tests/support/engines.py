"""An engine for tests: it runs the tower of a model of transformers by itself, and asks for the tokens that enter."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitcop_core import Method, VisionView
from vitcop_llava.engine import EngineParts, Tiling, entry_tokens, grid_positions
from vitcop_llava.families import locate
from vitcop_llava.hooks.entering import keys_of_first_layer


def tokens_of(model: Any, method: Method, pixels: Tensor, tiling: Tiling, size: tuple[int, int]) -> Tensor:
    """Return what enters of one image, ``pixels`` being those of its units."""
    parts = locate(model)
    scored, base = parts.scored, model.model
    assert scored is not None
    attention: Any = scored.attention
    noted = dict[str, Tensor]()
    handles = [
        getattr(attention, f"{name}_proj").register_forward_hook(lambda *args, name=name: noted.update({name: args[2]}))
        for name in "qk"
    ]
    states = parts.vision_tower(pixels, output_hidden_states=True).hidden_states[scored.index]
    for handle in handles:
        handle.remove()
    queries, keys = (noted[name].unflatten(-1, (scored.heads, -1)).transpose(1, 2) for name in "qk")
    features = states[:, 1:] if scored.has_cls else states

    def pack(tokens: Tensor) -> Tensor:
        if not tiling.tiles[0]:
            return tokens.flatten(0, 1)
        known = inspect.signature(base.pack_image_features).parameters
        asked = {
            "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
            "vision_aspect_ratio": getattr(model.config, "vision_aspect_ratio", None),
        }
        pack_all = partial(base.pack_image_features, **{name: each for name, each in asked.items() if name in known})
        packed: Tensor = pack_all([tokens], torch.tensor([size]), image_newline=base.image_newline)[0][0]
        return packed

    seen = VisionView(
        query_cls=queries[:, :, 0] if scored.has_cls else None,
        keys=keys,
        scale=scored.scale,
        positions=grid_positions(*parts.grid, pixels.device).expand(len(pixels), -1, -1),
        hidden=features,
        hidden_cls=states[:, 0] if scored.has_cls else None,
        queries=lambda: queries,
    )
    project: Any = parts.projector
    engine = EngineParts(parts.shape.num_layers, project, pack, partial(keys_of_first_layer, parts))
    return entry_tokens(method, tiling, seen, engine)
