"""Stage I's hooks: score the patches as the tower runs, project only what is kept, put it back at its places.

They act where the model encodes for itself: inside its forward, or ahead of it in ``generate``. Whoever else calls
the tower, the projector or ``get_image_features`` gets what they give unpruned. The tower keeps its fused attention:
what patches are ranked by is computed from what the scored layer's attention is called with. What was kept travels as
one more field of the encoder's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from vitcop_core import Method, VisionView
from vitcop_llava.compat import grids_argument, pixels_argument, split_clips
from vitcop_llava.families import Parts
from vitcop_llava.families.base import Anyres, ScoredLayer
from vitcop_llava.families.clips import check_frames, read_clips, stacked
from vitcop_llava.families.grids import GRIDS, check_patches, read_grids
from vitcop_llava.families.image_sizes import check_sizes, read_shared, read_sizes
from vitcop_llava.families.llava_onevision import most_tiles
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.active import (
    active_call,
    active_tower,
    encoding,
    is_encoding,
    is_encoding_ahead,
    replaying_tower,
    set_tower,
    tower_ends_at,
)
from vitcop_llava.hooks.arguments import by_name, names_of
from vitcop_llava.hooks.capture import TowerCapture
from vitcop_llava.hooks.carrying import with_encoded
from vitcop_llava.hooks.checks import PIXELS, check_feature_choice, check_unchanged
from vitcop_llava.hooks.entering import entry_keys
from vitcop_llava.hooks.lines import mixed_units
from vitcop_llava.hooks.patching import Removable, Replacement, eager
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.hooks.projected import cut_projected
from vitcop_llava.hooks.stage_one import run_stage_one, whole_codes
from vitcop_llava.hooks.state import EncodedImages, TowerPass
from vitcop_llava.hooks.tower import TowerHooks
from vitcop_llava.sequence.segment import grid_positions, on_device
from vitcop_llava.weights.offloading import weights_in_place


class FeatureHooks:
    """Wraps the functions of the base module that encode: they know when images are encoded to be pruned, their sizes
    and the lengths of clips. Without a vision tower to cut in, they count what it gives; and if the method reads
    projected features, they let it choose among them.
    """

    def __init__(
        self,
        parts: Parts,
        planner: Planner,
        owner: int,
        tower: TowerHooks,
        capture: TowerCapture | None = None,
        *,
        cuts_tower: bool,
        identity: bool,
        chooser: Method | None = None,
        decide: Callable[[TowerPass, Sequence[Tensor]], Sequence[Tensor]] | None = None,
    ) -> None:
        self._capture, self._decide = capture, decide
        self._parts, self._planner, self._owner, self._tower = parts, planner, owner, tower
        self._cuts_tower, self._identity, self._chooser = cuts_tower, identity, chooser

    def attach(self) -> Iterator[Removable]:
        """Replace the functions, yielding what undoes it."""
        parts = self._parts
        if parts.squares is not None:
            for kind in parts.token_ids:
                yield Replacement(parts.base, f"get_{kind}_features", partial(self._encode_grids, kind))
            return
        if not self._identity or parts.anyres is not None or parts.scored is None:
            yield Replacement(parts.base, "get_image_features", self._encode_images)
        if parts.video is not None:
            yield Replacement(parts.base, "get_video_features", self._encode_clips)

    def _is_own_call(self, kind: str) -> bool:
        """Return whether the model encodes for a call that is to be pruned, and nobody else does."""
        if self._identity and torch.compiler.is_compiling():
            return False
        call = active_call(self._owner)
        waits = call is not None and kind in call.sources and call.sources[kind].encoded is None
        return waits or is_encoding_ahead(self._owner)

    def _encode_images(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_own_call("image"):
            return original(*args, **kwargs)
        given, anyres = by_name(names_of(original), args, kwargs), self._parts.anyres
        if self._cuts_tower:
            check_feature_choice(given, self._parts)
        encoded = EncodedImages(self._owner)
        if anyres is not None:
            sizes = read_sizes(given.get("image_sizes"))
            tilings = image_tilings(given, anyres, sizes)
            check_sizes(sizes, tilings, given.get("pixel_values"), anyres.tile_size)
            # From here on they are numbers on the host: transformers need not read them back once more for every image.
            given["image_sizes"] = sizes
            self._check_count("image", "image_sizes", tilings)
            encoded.images = self._planner.images(tilings, sizes)
        return self._encode(original, given, encoded)

    def _encode_clips(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_own_call("video"):
            return original(*args, **kwargs)
        given, video = by_name(names_of(original), args, kwargs), self._parts.video
        assert video is not None  # only then attached
        if self._cuts_tower:
            check_feature_choice(given, self._parts)
        name = pixels_argument(original)
        frames, given[name] = read_clips(given.get(name), video.frame_size)
        clips = [video.clip(count) for count in frames]
        images = self._planner.images(clips)
        call = active_call(self._owner)
        if call is not None and "video" in call.sources:
            counted = None if call.seen is None else call.seen.count("video")
            check_frames(clips, call.sources["video"].where, counted)

        base: Any = self._parts.base
        tokens, newline = [clip.tokens for clip in clips], base.image_newline if video.ending else None
        appends = False

        def split(features: Any) -> Sequence[Tensor]:
            nonlocal appends
            rows, appends = split_clips(features, frames, tokens, newline)
            return rows

        output = self._encode(original, given, EncodedImages(self._owner, "video", images), split)
        if hasattr(output, "pooler_output") and video.is_stacked:
            whole = stacked(output.pooler_output, at_once=appends or not is_encoding_ahead(self._owner))
            output.pooler_output = whole[:, :-1] if appends and isinstance(whole, Tensor) else whole
        return output

    def _encode_grids(self, kind: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        squares = self._parts.squares
        if squares is None or is_encoding(self._owner) or not self._is_own_call(kind):
            return original(*args, **kwargs)
        given = by_name(names_of(original), args, kwargs)
        pixels, name = pixels_argument(original), grids_argument(original)
        call = active_call(self._owner)
        seen = None if call is None else call.seen
        origin, numbers = (None, None) if seen is None else seen.grids.get(kind, (None, None))
        read = numbers if origin is given.get(name) else None
        grids = read_grids(GRIDS[kind], given.get(name), squares, read)
        check_patches(PIXELS[kind], given.get(pixels), GRIDS[kind], grids)
        if kind == "image":
            tilings = [squares.image(rows, columns) for _, rows, columns in grids]
        else:
            tilings = [squares.clip(*grid) for grid in grids]
        self._check_count(kind, GRIDS[kind], tilings)
        images = self._planner.images(tilings)
        with encoding(self._owner):
            return self._encode(original, given, EncodedImages(self._owner, kind, images))

    def _check_count(self, kind: str, name: str, tilings: Sequence[Tiling]) -> None:
        """Raise unless the prompt, where it was read, has the placeholders that follow from the argument ``name``."""
        call, needed = active_call(self._owner), sum(tiling.placeholders for tiling in tilings)
        if call is not None and call.seen is not None and not call.seen.holds({kind: needed}):
            raise ValueError(
                f"input_ids must hold the {needed} {kind} placeholders of {name}, got {call.seen.count(kind)}"
            )

    def _encode(
        self,
        original: Callable[..., Any],
        given: dict[str, Any],
        encoded: EncodedImages,
        split: Callable[[Any], Sequence[Tensor]] | None = None,
    ) -> Any:
        tower = TowerPass(encoded) if self._cuts_tower else None
        if tower is not None:
            check_unchanged(self._parts)
            set_tower(tower)
        top = None if self._identity else self._tower.last_wanted(given)
        encoded.unreplayed = None if self._capture is None else self._capture.obstacle(given, top)
        replays = self._capture is not None and encoded.unreplayed is None
        try:
            with tower_ends_at(self._owner, top), replaying_tower(encoded if replays else None):
                output = original(**given)
        finally:
            if tower is not None:
                set_tower(None)
        if hasattr(output, "pooler_output"):
            if split is not None:
                output.pooler_output = split(output.pooler_output)
            if tower is None:
                self._count(output.pooler_output, encoded)
            elif self._decide is not None:
                output.pooler_output = self._decide(tower, output.pooler_output)
            output = with_encoded(output, encoded)
        call = active_call(self._owner)
        if call is not None:
            call.take(encoded)
        return output

    def _count(self, features: Any, encoded: EncodedImages) -> None:
        """Plan images by what the encoder gave for each, unless their sizes have told already."""
        counts = [each.shape[:-1].numel() for each in features]
        if (
            self._parts.squares is None
            and encoded.kind == "image"
            and counts != [image.tiling.placeholders for image in encoded.images]
        ):
            rows, columns = self._parts.grid
            own = [(rows, columns) if count == rows * columns else (1, count) for count in counts]
            encoded.images = self._planner.images([Tiling(grid) for grid in own])
        if self._chooser is not None and any(image.plan.vision is not None for image in encoded.images):
            cut_projected(self._chooser, features, encoded)
        else:
            encoded.coded = whole_codes(encoded.images, features[0].device)


def image_tilings(given: dict[str, Any], anyres: Anyres, sizes: Sequence[tuple[int, int]]) -> list[Tiling]:
    """Return how the images of a call lie, and put what tells them apart on the host."""
    if not anyres.tiles_one:
        return [anyres.tile(*size) for size in sizes]
    if given.get("vision_aspect_ratio") is not None:
        anyres = replace(anyres, most=most_tiles(given["vision_aspect_ratio"]))
    given["batch_num_images"] = counts = read_shared(given.get("batch_num_images"), len(sizes))
    shared = [False] * len(sizes) if counts is None else [count > 1 for count in counts for _ in range(count)]
    return [anyres.untiled if one else anyres.tile(*size) for size, one in zip(sizes, shared, strict=True)]


class VisionHooks:
    """The hooks on vision tower and projector. Holds the parts and the method, and no state of any call."""

    def __init__(self, parts: Parts, method: Method, planner: Planner, owner: int) -> None:
        self._parts, self._method, self._planner, self._owner = parts, method, planner, owner
        # The same for all calls: made once for each device.
        self._positions = cache(grid_positions)

    @property
    def modules(self) -> list[nn.Module]:
        """What the hooks go on."""
        scored = self._parts.scored
        return [] if scored is None else [self._parts.vision_tower, scored.attention, self._parts.projector]

    def attach(self) -> Iterator[Removable]:
        """Register the hooks, yielding the handle of each."""
        parts, scored = self._parts, self._parts.scored
        assert scored is not None  # a method that cuts here is refused without
        yield scored.attention.register_forward_pre_hook(eager(self._before_attention), with_kwargs=True)
        yield parts.vision_tower.register_forward_hook(eager(self._after_tower))
        yield parts.projector.register_forward_pre_hook(eager(self._before_projector))
        yield parts.projector.register_forward_hook(eager(self._after_projector), always_call=True)

    def _before_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tower = active_tower(self._owner)
        if tower is not None:
            tower.normed = args[0] if args else kwargs["hidden_states"]

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tower, scored = active_tower(self._owner), self._parts.scored
        hidden_states = getattr(output, "hidden_states", None)
        if tower is not None and scored is not None and hidden_states is not None:
            tower.feature = hidden_states[scored.index]

    def _before_projector(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        tower = active_tower(self._owner)
        if tower is None:
            return None
        features, encoded = args[0], tower.encoded
        if not encoded.images:
            encoded.images = self._planner.images([self._parts.tiling] * features.shape[0])
        self._check(tower, features)
        mixed = mixed_units(encoded.tilings, self._parts)
        if len(mixed) == features.shape[0]:
            return None  # what becomes of these is decided when they are tokens
        own = [unit for unit in range(features.shape[0]) if unit not in {*mixed}] if mixed else None
        kept, made = run_stage_one(self._method, self._view(tower, features, own), encoded, own)
        if kept is None:
            return None
        tower.places, tower.patches = kept, features.shape[:2]
        through = features.flatten(0, 1)
        if own is not None:
            units, patches = on_device(own, kept.device), features.shape[1]
            kept = units[torch.div(kept, patches, rounding_mode="floor")] * patches + kept % patches
            rest = on_device(mixed, kept.device)
            rest = (rest[:, None] * patches + torch.arange(patches, device=kept.device)).flatten()
            tower.places = torch.cat([kept, rest])
            made = None if made is None else (torch.cat([made[0], through.index_select(0, rest)]),)
        return (through.index_select(0, tower.places)[None] if made is None else made[0][None],)

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

    def _view(self, tower: TowerPass, features: Tensor, own: Sequence[int] | None) -> VisionView:
        """Return what the tower has shown of units whose tokens are the scored layer's patches, pooled or not.

        Args:
            tower: The pass.
            features: ``[C, m, d_v]``, what the projector was called with.
            own: Which of the units; None for all.
        """
        scored, normed, feature = self._parts.scored, tower.normed, tower.feature
        assert scored is not None  # else nothing is attached
        assert normed is not None  # checked by the caller
        assert feature is not None  # likewise
        video = self._parts.video if tower.encoded.kind == "video" else None
        grid, of_video = self._parts.grid, dict[str, Any]()
        if video is not None:
            frames = tuple(image.tiling.frames for image in tower.encoded.images)
            grid, of_video = video.grid, {"pool": video.pool, "grid": grid, "frames": frames}
        if own is not None:
            units = on_device(own, features.device)
            features, normed, feature = (each.index_select(0, units) for each in (features, normed, feature))
        return VisionView(
            query_cls=projected(scored, "q", normed[:, :1])[:, :, 0] if scored.has_cls else None,
            keys=projected(scored, "k", normed),
            entry_keys=partial(entry_keys, self._parts),
            scale=scored.scale,
            positions=self._positions(*grid, features.device).expand(features.shape[0], -1, -1),
            hidden=features,
            hidden_cls=feature[:, 0] if scored.has_cls else None,
            queries=partial(projected, scored, "q", normed),
            **of_video,
        )

    def _check(self, tower: TowerPass, features: Tensor) -> None:
        """Raise unless the projector was called with the scored layer's patches, pooled or not."""
        scored, normed = self._parts.scored, tower.normed
        assert scored is not None  # else nothing is attached
        if normed is None or tower.feature is None:
            raise ValueError(
                "model must run the layer of its vision tower that Stage I reads, got a call without it or without "
                "hidden states: a part was replaced while it was pruned; leave the `with` block, and prune the model "
                "as it is then"
            )
        video = self._parts.video if tower.encoded.kind == "video" else None
        pools = video is not None and video.pool is not None
        rows, columns = self._parts.grid
        if (rows * columns if pools else features.shape[1]) != normed.shape[1] - scored.has_cls:
            raise ValueError(
                "vision_feature_layer and vision_feature_select_strategy must select hidden state "
                f"{scored.index} of the vision tower{' without CLS' if scored.has_cls else ''}, as the model's "
                f"configuration says, got features of shape {tuple(features.shape)}"
            )
        rows, columns = video.grid if video is not None and pools else (rows, columns)
        if features.shape[1] != rows * columns:
            raise ValueError(f"pixel_values must give {rows * columns} patches an image, got {features.shape[1]}")


def projected(scored: ScoredLayer, name: str, normed: Tensor) -> Tensor:
    """Return queries ("q") or keys ("k") of tokens ``[C, n, d_v]``, by head: ``[C, H, n, e]``.

    By the projections of this moment, adapters and all.
    """
    attention: Any = scored.attention
    with weights_in_place(attention):
        states = getattr(attention, f"{name}_proj")(normed)
    by_head: Tensor = states.unflatten(-1, (scored.heads, -1))
    return by_head.transpose(1, 2)
