"""Stage I's hooks: score the patches as the tower runs, project only what is kept, put it back at its places.

The tower keeps its fused attention: the CLS row is computed from the queries and keys of one layer. What was kept
travels on the tower's output object, which transformers hands on (as ``mm_encoder_outputs`` in ``generate``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitcop_core import Method, VisionView
from vitcop_llava.call_checks import check_feature_choice
from vitcop_llava.clips import check_frames, read_clips, split_clips
from vitcop_llava.families import Parts
from vitcop_llava.planning import Planner
from vitcop_llava.sequence import grid_positions
from vitcop_llava.sizes import check_sizes, read_sizes
from vitcop_llava.stage_one import run_stage_one
from vitcop_llava.state import EncodedImages, TowerPass, active_call, active_tower, set_tower

_ENCODED = "_vitcop_encoded"


def encoded_of(output: object) -> EncodedImages | None:
    """What Stage I left on a tower output, or None where it never saw it."""
    found = getattr(output, _ENCODED, None)
    return found if isinstance(found, EncodedImages) else None


class _Replacement:
    """A method of one module, replaced on the instance until ``remove()``."""

    def __init__(self, module: nn.Module, name: str, method: Callable[..., Any]) -> None:
        self._attributes, self._name, self._method = vars(module), name, method
        self._before = self._attributes.get(name)
        self._attributes[name] = method

    def remove(self) -> None:
        """Puts back what was there; someone else's later replacement stays."""
        if self._attributes.get(self._name) is not self._method:
            return
        if self._before is None:
            del self._attributes[self._name]
        else:
            self._attributes[self._name] = self._before


class FeatureHooks:
    """Learns, from the call that encodes, what no module is told: sizes of images that are tiled, lengths of clips."""

    def __init__(self, parts: Parts, planner: Planner, owner: int) -> None:
        self._parts, self._planner, self._owner = parts, planner, owner

    def attach(self) -> Iterator[_Replacement]:
        """Wraps the functions of the base module that encode, yielding the handles."""
        if self._parts.anyres is not None:
            yield self._wrap("get_image_features", self._encode_images)
        if self._parts.video is not None:
            yield self._wrap("get_video_features", self._encode_clips)

    def _wrap(self, name: str, around: Callable[..., Any]) -> _Replacement:
        original: Callable[..., Any] = getattr(self._parts.base, name)
        # A partial of bound methods, since a deep copy of the model then calls the copy.
        return _Replacement(self._parts.base, name, update_wrapper(partial(around, original), original))

    def _encode_images(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = _arguments(original, args, kwargs)
        anyres = self._parts.anyres
        assert anyres is not None  # only then attached
        sizes = read_sizes(given.get("image_sizes"))
        tilings = [anyres.tile(*size) for size in sizes]
        check_sizes(sizes, tilings, given.get("pixel_values"), anyres.tile_size)
        # From here on they are numbers on the host, which transformers needs not read back once more for every image.
        given["image_sizes"] = sizes
        return self._encode(original, given, EncodedImages(self._owner, images=self._planner.images(tilings, sizes)))

    def _encode_clips(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given, video = _arguments(original, args, kwargs), self._parts.video
        assert video is not None  # only then attached
        check_feature_choice(given, self._parts)
        name = next(iter(inspect.signature(original).parameters))  # transformers has renamed it
        frames, given[name] = read_clips(given.get(name), video.frame_size)
        images = self._planner.images([video.clip(count) for count in frames])
        call = active_call(self._owner)
        if call is not None and "video" in call.sources:
            check_frames(frames, images[0].tiling.tokens // frames[0], call.sources["video"].where)
        output = self._encode(original, given, EncodedImages(self._owner, "video", images))
        if hasattr(output, "pooler_output"):
            output.pooler_output = split_clips(output.pooler_output, frames)
        return output

    def _encode(self, original: Callable[..., Any], given: dict[str, Any], encoded: EncodedImages) -> Any:
        set_tower(TowerPass(encoded))
        try:
            output = original(**given)
        finally:
            set_tower(None)
        if hasattr(output, "pooler_output"):
            setattr(output, _ENCODED, encoded)
        call = active_call(self._owner)
        if call is not None:
            call.take(encoded)
        return output


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    return {**bound, **bound.pop("kwargs", {})}


class VisionHooks:
    """The hooks on vision tower and projector. Holds the parts and the method, and no state of any call."""

    def __init__(self, parts: Parts, method: Method, planner: Planner, owner: int) -> None:
        self._parts, self._method, self._planner, self._owner = parts, method, planner, owner

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
        tower = active_tower(self._owner)
        if self._parts.anyres is None and (tower is None or tower.encoded.kind == "image"):
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
            call.take(tower.encoded)

    def _before_projector(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        tower = active_tower(self._owner)
        if tower is None:
            return None
        features, encoded = args[0], tower.encoded
        queries, keys = self._check_feature(tower, features)
        if not encoded.images:
            encoded.images = self._planner.images([self._parts.tiling] * features.shape[0])
        tower.places, made = run_stage_one(self._method, self._view(tower, queries, keys, features), encoded)
        if tower.places is None:
            return None
        tower.patches = features.shape[:2]
        return (features.flatten(0, 1).index_select(0, tower.places)[None] if made is None else made[None],)

    def _after_projector(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None) -> Tensor | None:
        tower = active_tower(self._owner)
        if tower is None:
            return None
        set_tower(None)
        if tower.places is None or output is None:
            return None
        units, patches = tower.patches
        room = output.new_zeros((units * patches, output.shape[-1]))
        return room.index_copy(0, tower.places, output[0]).view(units, patches, -1)

    def _check_feature(self, tower: TowerPass, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys of the scored layer, if the features are that layer's patches, pooled or not."""
        queries, keys = tower.queries, tower.keys
        rows, columns = grid = self._parts.grid
        video = self._parts.video if tower.encoded.kind == "video" else None
        wanted = features.shape[1] if video is None else rows * columns
        if queries is None or keys is None or tower.feature is None or wanted != keys.shape[1] - 1:
            raise ValueError(
                "vision_feature_layer and vision_feature_select_strategy: must select hidden state "
                f"{self._parts.feature_layer} of the vision tower without CLS, as the model's configuration says; this "
                f"call selected features of shape {tuple(features.shape)}"
            )
        rows, columns = grid if video is None else video.grid
        if features.shape[1] != rows * columns:
            raise ValueError(f"pixel_values: must give {rows * columns} patches an image, got {features.shape[1]}")
        return queries, keys

    def _view(self, tower: TowerPass, queries: Tensor, keys: Tensor, features: Tensor) -> VisionView:
        assert tower.feature is not None  # checked with the features
        heads, video = self._parts.vision_heads, self._parts.video
        of_video: dict[str, Any] = {}
        grid = self._parts.grid
        if video is not None and tower.encoded.kind == "video":
            frames = tuple(image.tiling.frames for image in tower.encoded.images)
            of_video = {"pool": video.pool, "grid": grid, "frames": frames}
            grid = video.grid
        return VisionView(
            query_cls=queries[:, 0].unflatten(-1, (heads, -1)),
            keys=keys.unflatten(-1, (heads, -1)).transpose(1, 2),
            scale=self._parts.vision_scale,
            positions=grid_positions(*grid, features.device).expand(features.shape[0], -1, -1),
            hidden=features,
            hidden_cls=tower.feature[:, 0],
            **of_video,
        )
