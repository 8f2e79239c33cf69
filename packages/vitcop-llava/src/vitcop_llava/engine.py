"""What a serving engine needs of a method: how many tokens an image leaves, and which they are.

An engine runs the vision tower, the projector and the language model itself. It asks `plan_image` how many tokens to
reserve, from the image's size alone, and `entry_tokens` for the tokens themselves, or `enter_image` where it must also
know which they are. `vitcop_llava.prune` plans and chooses by the same functions below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitcop_core import Method, VisionView
from vitcop_core.shown import shown_settings
from vitcop_core.tokens import places_of
from vitcop_llava.families.tiling import Tiling, interpolate_tiles, tile_image
from vitcop_llava.hooks.kept import DROPPED, PlannedImage
from vitcop_llava.hooks.mixing import decide_mixed
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.hooks.projected import cut_projected
from vitcop_llava.hooks.stage_one import packed, run_stage_one
from vitcop_llava.hooks.state import EncodedImages
from vitcop_llava.sequence.segment import grid_positions

__all__ = [
    "EngineParts",
    "Entry",
    "Tiling",
    "enter_image",
    "entry_tokens",
    "grid_positions",
    "interpolate_tiles",
    "plan_image",
    "tile_image",
]


@dataclass(frozen=True)
class EngineParts:
    """What an engine does behind the tower, for one image.

    Attributes:
        num_layers: Decoder layers of the language model.
        project: The projector: ``[..., d_v]`` to ``[..., d]``.
        pack: Packs the projected patches of all units as the unpruned model does: ``[C, m, d]`` to
            ``[placeholders, d]``.
        keys: The keys that the first decoder layer makes of tokens by themselves, not rotated: ``[C, k, d]`` to
            ``[C, G, k, e]``.
    """

    num_layers: int
    project: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor], Tensor]
    keys: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Entry:
    """The tokens of an image that enter the language model.

    Attributes:
        tokens: ``[k, d]``, in their order.
        places: ``[k]`` int64 ascending: which of the unpruned image's placeholders each of them stands at.
    """

    tokens: Tensor
    places: Tensor


def plan_image(method: Method, num_layers: int, tiling: Tiling) -> int:
    """Return how many tokens of an image enter the language model, the same in every layer.

    Newlines are among them only where everything is kept.

    Args:
        method: One that cuts before the language model alone.
        num_layers: Decoder layers.
        tiling: How the image lies in units; see `tile_image`.

    Raises:
        ValueError: The method also cuts inside the language model, or the budget does not fit the image.
    """
    image = _planned(method, num_layers, tiling)
    return image.plan.entry_tokens + image.newlines


@torch.no_grad()
def entry_tokens(method: Method, tiling: Tiling, seen: VisionView, parts: EngineParts) -> Tensor:
    """Return the tokens of an image that enter the language model, in their order.

    Args:
        method: As given to `plan_image`.
        tiling: Likewise.
        seen: What the tower has shown of the image's units, ``hidden`` being the selected features; without what is
            eligible and without ``entry_keys``.
        parts: The engine's.

    Returns:
        ``[k, d]``, k being what `plan_image` says.

    Raises:
        ValueError: As `plan_image`.
    """
    return enter_image(method, tiling, seen, parts).tokens


@torch.no_grad()
def enter_image(method: Method, tiling: Tiling, seen: VisionView, parts: EngineParts) -> Entry:
    """Return the tokens of an image that enter the language model, and which they are; see `entry_tokens`.

    Raises:
        ValueError: As `plan_image`.
    """
    image = _planned(method, parts.num_layers, tiling)
    if image.plan.is_identity:
        tokens = parts.pack(parts.project(seen.hidden))
        return Entry(tokens, torch.arange(len(tokens), device=tokens.device))
    encoded = EncodedImages(0, images=(image,))
    seen = replace(seen, entry_keys=lambda features: parts.keys(parts.project(features)))
    if method.needs_projected:
        tokens = parts.pack(parts.project(seen.hidden))
        cut_projected(method, [tokens], encoded)
        return _staying(tokens, encoded)
    if tiling.is_interpolated:
        return _staying(_interpolated(method, tiling, seen, parts, encoded), encoded)
    tokens = parts.project(_entering(method, tiling, seen, encoded))
    return Entry(tokens, _places(encoded))


def _entering(method: Method, tiling: Tiling, seen: VisionView, encoded: EncodedImages) -> Tensor:
    """Return ``[k, d_v]``, what goes through the projector, where each token is a patch."""
    places, made = run_stage_one(method, seen, encoded)
    flat = seen.hidden.flatten(0, 1)
    assert places is not None  # something is left out
    kept = flat.index_select(0, places) if made is None else made[0]
    if not tiling.tiles[0]:
        return kept
    # Units one after the other become the lines of the tiles' merged grid.
    rank = torch.full((len(flat),), -1, dtype=torch.int64, device=flat.device)
    rank = rank.scatter(0, places, torch.arange(len(places), device=flat.device))
    order = packed(rank.view(seen.hidden.shape[:2]), encoded.images)
    return kept.index_select(0, order[places_of((order >= 0)[None], len(places))[0]])


def _interpolated(
    method: Method, tiling: Tiling, seen: VisionView, parts: EngineParts, encoded: EncodedImages
) -> Tensor:
    """Return ``[placeholders, d]``, with the tokens that the method made in their places."""
    features = seen.hidden
    places, made = run_stage_one(method, _units(seen, slice(1)), encoded, (0,))
    if places is not None and made is not None:
        features = features.flatten(0, 1).index_copy(0, places, made[0].to(features.dtype)).view_as(features)
    tokens = parts.pack(parts.project(features))
    tiles = replace(_units(seen, slice(1, None)), entry_keys=parts.keys)
    if tiles.hidden_cls is not None:
        tiles = replace(tiles, hidden_cls=parts.project(tiles.hidden_cls))
    (tokens,) = decide_mixed(method, tiles, encoded, range(1, len(tiling.boxes)), [tokens], tiling.grid)
    return tokens


def _units(seen: VisionView, which: slice) -> VisionView:
    """Return what the tower has shown of some of the units."""
    return replace(
        seen,
        query_cls=None if seen.query_cls is None else seen.query_cls[which],
        keys=seen.keys[which],
        positions=seen.positions[which],
        hidden=seen.hidden[which],
        hidden_cls=None if seen.hidden_cls is None else seen.hidden_cls[which],
        queries=lambda: seen.queries()[which],
    )


def _staying(tokens: Tensor, encoded: EncodedImages) -> Entry:
    """Return the tokens whose placeholders stay, of ``[placeholders, d]``."""
    places = _places(encoded).to(tokens.device)
    return Entry(tokens.index_select(0, places), places)


def _places(encoded: EncodedImages) -> Tensor:
    """Return which placeholders of an image stay."""
    (image,) = encoded.images
    assert encoded.codes is not None  # something was decided
    return places_of((encoded.codes != DROPPED)[None], image.plan.entry_tokens)[0]


def _planned(method: Method, num_layers: int, tiling: Tiling) -> PlannedImage:
    (image,) = Planner(method, num_layers, keep_newlines=False).images([tiling])
    if image.plan.decoder:
        layers = ", ".join(str(cut.layer) for cut in image.plan.decoder)
        raise ValueError(
            f"method must cut before the language model alone, got {shown_settings(method)}, which cuts before "
            f"layers {layers}; use earlyvitcop, visionzip, vispruner or divprune"
        )
    return image
