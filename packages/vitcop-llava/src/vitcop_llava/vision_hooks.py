"""Stage I's hooks: score the patches as the tower runs, project only what is kept, put it back at its places.

The tower keeps its fused attention: the CLS row is computed from the queries and keys of one layer. What was kept
travels on the tower's output object, which transformers hands on (as ``mm_encoder_outputs`` in ``generate``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitcop_core import Method, VisionView
from vitcop_llava.families import Parts
from vitcop_llava.sequence import grid_positions, take
from vitcop_llava.state import EncodedImages, TowerPass, active_call, active_tower, set_tower

_ENCODED = "_vitcop_encoded"


def encoded_of(output: object) -> EncodedImages | None:
    """What Stage I left on a tower output, or None where it never saw it."""
    found = getattr(output, _ENCODED, None)
    return found if isinstance(found, EncodedImages) else None


class VisionHooks:
    """The hooks on vision tower and projector. Holds the parts and the method, and no state of any call."""

    def __init__(self, parts: Parts, method: Method, owner: int) -> None:
        self._parts, self._method, self._owner = parts, method, owner

    def attach(self) -> Iterator[RemovableHandle]:
        """Registers the hooks, yielding the handle of each."""
        parts = self._parts
        yield parts.vision_tower.register_forward_pre_hook(self._before_tower)
        yield parts.vision_tower.register_forward_hook(self._after_tower, always_call=True)
        for name in ("q_proj", "k_proj"):
            projection: nn.Module = getattr(parts.vision_attention, name)
            yield projection.register_forward_hook(partial(self._keep_projection, name))
        yield parts.projector.register_forward_pre_hook(self._before_projector)
        yield parts.projector.register_forward_hook(self._after_projector, always_call=True)

    def _before_tower(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        set_tower(TowerPass(EncodedImages(self._owner)))

    def _keep_projection(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        tower = active_tower(self._owner)
        if tower is not None and name == "q_proj":
            tower.queries = output
        elif tower is not None:
            tower.keys = output

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tower = active_tower(self._owner)
        if tower is None or output is None:  # there is no output after an exception
            set_tower(None)
            return
        hidden_states = getattr(output, "hidden_states", None)
        if hidden_states is not None:
            tower.feature = hidden_states[self._parts.feature_layer]
        setattr(output, _ENCODED, tower.encoded)
        call = active_call(self._owner)
        if call is not None:
            call.encoded = tower.encoded

    def _before_projector(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        tower = active_tower(self._owner)
        if tower is None:
            return None
        features, encoded = args[0], tower.encoded
        queries, keys = self._check_feature(tower, features)
        encoded.count, encoded.tokens = features.shape[:2]
        cut = self._method.plan(self._parts.shape.num_layers, encoded.tokens).vision
        if cut is None:
            return None
        selection = self._method.cut_vision(self._view(queries, keys, features), cut.keep[0], cut.clusters[0])
        if selection.clusters is not None:
            encoded.labels, encoded.clusters = selection.clusters.labels, cut.clusters[0]
            encoded.keys = take(keys[:1, 1:].detach(), selection.index[:1])[0]
        if cut.keep[0] == encoded.tokens:
            return None
        encoded.index = selection.index
        return (take(features, selection.index),)

    def _after_projector(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None) -> Tensor | None:
        tower = active_tower(self._owner)
        if tower is None:
            return None
        set_tower(None)
        encoded = tower.encoded
        if encoded.index is None or output is None:
            return None
        places = encoded.index[..., None].expand(-1, -1, output.shape[-1])
        room = output.new_zeros((encoded.count, encoded.tokens, output.shape[-1]))
        return room.scatter(1, places, output)

    def _check_feature(self, tower: TowerPass, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys of the scored layer, if the features are that layer's patches."""
        queries, keys = tower.queries, tower.keys
        if queries is None or keys is None or tower.feature is None or features.shape[1] != keys.shape[1] - 1:
            raise ValueError(
                "vision_feature_layer and vision_feature_select_strategy: must select hidden state "
                f"{self._parts.feature_layer} of the vision tower without CLS, as the model's configuration says; this "
                f"call selected features of shape {tuple(features.shape)}"
            )
        if features.shape[1] != self._parts.visual_tokens:
            raise ValueError(
                f"pixel_values: must give {self._parts.visual_tokens} patches an image, got {features.shape[1]}"
            )
        return queries, keys

    def _view(self, queries: Tensor, keys: Tensor, features: Tensor) -> VisionView:
        heads = self._parts.vision_heads
        return VisionView(
            query_cls=queries[:, 0].unflatten(-1, (heads, -1)),
            keys=keys.unflatten(-1, (heads, -1)).transpose(1, 2),
            scale=self._parts.vision_scale,
            positions=grid_positions(*self._parts.grid, features.device).expand(features.shape[0], -1, -1),
            hidden=features,
        )
