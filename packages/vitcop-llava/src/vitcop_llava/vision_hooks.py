"""Stage I's hooks: score the patches as the tower runs, project only what is kept, put it back at its places.

The tower keeps its fused attention: the CLS row is computed from the queries and keys of one layer. What was kept
travels on the tower's output object, which transformers hands on (as ``mm_encoder_outputs`` in ``generate``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vitcop_core import Method, VisionView

from vitcop_llava.families import Parts
from vitcop_llava.sequence import take
from vitcop_llava.state import EncodedImages, TowerPass, active_call, active_tower, set_tower

_ENCODED = "_vitcop_encoded"


def encoded_of(output: object) -> EncodedImages | None:
    """What Stage I left on a tower output, or None where it never saw it."""
    found = getattr(output, _ENCODED, None)
    return found if isinstance(found, EncodedImages) else None


class VisionHooks:
    """The hooks on vision tower and projector. Holds the parts and the method, and no state of any call."""

    def __init__(self, parts: Parts, method: Method, owner: object) -> None:
        self._parts, self._method, self._owner = parts, method, owner
        rows, columns = parts.grid
        grid = torch.cartesian_prod(torch.arange(rows) / rows, torch.arange(columns) / columns)
        self._positions = grid.reshape(rows * columns, 2)

    def attach(self) -> Iterator[RemovableHandle]:
        """Registers the hooks, yielding the handle of each."""
        parts = self._parts
        yield parts.vision_tower.register_forward_pre_hook(self._before_tower)
        yield parts.vision_tower.register_forward_hook(self._after_tower)
        yield parts.vision_attention.q_proj.register_forward_hook(self._keep_queries)
        yield parts.vision_attention.k_proj.register_forward_hook(self._keep_keys)
        yield parts.projector.register_forward_pre_hook(self._before_projector)
        yield parts.projector.register_forward_hook(self._after_projector)

    def _before_tower(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        set_tower(TowerPass(EncodedImages(self._owner)))

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tower = active_tower()
        if tower is None or tower.encoded.owner is not self._owner:
            return
        hidden_states = getattr(output, "hidden_states", None)
        if hidden_states is not None and hidden_states[self._parts.feature_layer] is not None:
            tower.feature = hidden_states[self._parts.feature_layer]
        setattr(output, _ENCODED, tower.encoded)
        call = active_call()
        if call is not None and call.owner is self._owner:
            call.encoded = tower.encoded

    def _keep_queries(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if (tower := active_tower()) is not None:
            tower.queries = output

    def _keep_keys(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if (tower := active_tower()) is not None:
            tower.keys = output

    def _before_projector(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        tower = active_tower()
        if tower is None or tower.encoded.owner is not self._owner:
            return None
        features = args[0]
        self._check_feature(tower, features)
        encoded = tower.encoded
        encoded.count, encoded.tokens = features.shape[:2]
        cut = self._method.plan(self._parts.shape.num_layers, encoded.tokens).vision
        if cut is None:
            return None
        selection = self._method.cut_vision(self._view(tower, features), cut.keep[0], cut.clusters[0])
        if selection.clusters is not None:
            encoded.labels, encoded.clusters = selection.clusters.labels, cut.clusters[0]
        encoded.features = self._kept_keys(tower, selection.index)
        if cut.keep[0] == encoded.tokens:
            return None
        encoded.index = selection.index
        return (take(features, selection.index),)

    def _after_projector(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        tower = active_tower()
        if tower is None or tower.encoded.owner is not self._owner:
            return None
        set_tower(None)
        encoded = tower.encoded
        if encoded.index is None:
            return None
        places = encoded.index[..., None].expand(-1, -1, output.shape[-1])
        room = output.new_zeros((encoded.count, encoded.tokens, output.shape[-1]))
        return room.scatter(1, places, output)

    def _check_feature(self, tower: TowerPass, features: Tensor) -> None:
        wanted = f"hidden state {self._parts.feature_layer} of the vision tower without CLS, as the model's configuration says"
        keys = tower.keys
        if keys is None or tower.queries is None or features.shape[1] != keys.shape[1] - 1 or tower.feature is None:
            raise ValueError(
                f"vision_feature_layer and vision_feature_select_strategy: must select {wanted}; "
                f"this call selected features of shape {tuple(features.shape)}"
            )
        if features.shape[1] != self._parts.visual_tokens:
            raise ValueError(
                f"pixel_values: must give {self._parts.visual_tokens} patches an image, got {features.shape[1]}"
            )

    def _view(self, tower: TowerPass, features: Tensor) -> VisionView:
        attention = self._parts.vision_attention
        heads = attention.num_heads
        assert tower.queries is not None and tower.keys is not None  # checked in _check_feature
        query = tower.queries[:, 0].unflatten(-1, (heads, -1))
        keys = tower.keys.unflatten(-1, (heads, -1)).transpose(1, 2)
        positions = self._positions.to(features.device).expand(features.shape[0], -1, -1)
        return VisionView(query_cls=query, keys=keys, scale=attention.scale, positions=positions, hidden=features)

    def _kept_keys(self, tower: TowerPass, index: Tensor) -> Tensor:
        assert tower.keys is not None  # checked in _check_feature
        return tower.keys[:1, 1:].gather(1, index[:1, :, None].expand(-1, -1, tower.keys.shape[-1]))[0].detach()
