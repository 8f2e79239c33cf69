"""What a serving engine needs of a method: how many tokens an image leaves, and which they are.

An engine runs the vision tower, the projector and the language model itself. It asks `plan_image` how many tokens to
reserve, from the image's size alone, and `entry_features` which features to project. `vitcop_llava.prune` runs on the
same functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcop_core import Method, VisionView
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.kept import PlannedImage
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.hooks.stage_one import packed, run_stage_one
from vitcop_llava.hooks.state import EncodedImages
from vitcop_llava.sequence.segment import grid_positions

__all__ = ["EntryPlan", "entry_features", "grid_positions", "plan_image"]


@dataclass(frozen=True)
class EntryPlan:
    """What of an image enters the language model, without newlines.

    Attributes:
        tiling: How the image lies in units.
        tokens: How many tokens stay, the same in every layer.
    """

    tiling: Tiling
    tokens: int


def plan_image(method: Method, num_layers: int, tiling: Tiling) -> EntryPlan:
    """Return what a method leaves of an image.

    Args:
        method: One that cuts before the language model alone.
        num_layers: Decoder layers.
        tiling: How the image lies in units; see `vitcop_llava.tile_image`.

    Raises:
        ValueError: The method also cuts inside the language model, or the budget does not fit the image.
    """
    image = _planned(method, num_layers, tiling)
    return EntryPlan(tiling, image.plan.entry_tokens)


def entry_features(method: Method, num_layers: int, tiling: Tiling, seen: VisionView) -> Tensor:
    """Return the features of an image that are to be projected, in the order in which their tokens enter.

    Args:
        method: As given to `plan_image`.
        num_layers: Likewise.
        tiling: Likewise.
        seen: What the vision tower has shown of the image's units, without what is eligible.

    Returns:
        ``[k, d_v]``, k being the `EntryPlan.tokens` of the image.

    Raises:
        ValueError: As `plan_image`.
    """
    encoded = EncodedImages(0, images=(_planned(method, num_layers, tiling),))
    places, made = run_stage_one(method, seen, encoded)
    flat = seen.hidden.flatten(0, 1)
    if places is None:
        places = torch.arange(len(flat), device=flat.device)
    kept = flat.index_select(0, places) if made is None else made
    if not tiling.tiles[0]:
        return kept
    # Units one after the other become the lines of the tiles' merged grid.
    rank = torch.full((len(flat),), -1, dtype=torch.int64, device=flat.device)
    rank = rank.scatter(0, places, torch.arange(len(places), device=flat.device))
    order = packed(rank.view(seen.hidden.shape[:2]), encoded.images)
    return kept.index_select(0, order[order >= 0])


def _planned(method: Method, num_layers: int, tiling: Tiling) -> PlannedImage:
    (image,) = Planner(method, num_layers, keep_newlines=False).images([tiling])
    if image.plan.decoder:
        layers = ", ".join(str(cut.layer) for cut in image.plan.decoder)
        raise ValueError(
            f"method must cut before the language model alone, got {method!r}, which cuts before layers {layers}; use "
            "earlyvitcop, visionzip or vispruner"
        )
    return image
