"""Stage I behind the projector: the encoder gives all tokens of an image, and a method chooses among them.

Nothing is hooked for it. What `get_image_features` gives has everything there is to see, whatever tower it came from,
in the order of the placeholders. Features of tokens that are dropped go where those of all dropped placeholders go.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from vitcop_core import Method, VisionView
from vitcop_llava.hooks.kept import PlannedImage
from vitcop_llava.hooks.squares import unit_positions
from vitcop_llava.hooks.stage_one import packed, run_stage_one
from vitcop_llava.hooks.state import EncodedImages
from vitcop_llava.sequence.segment import copied

_KEPT = 64
"""Orders that are kept."""


def cut_projected(method: Method, features: Iterable[Tensor], encoded: EncodedImages) -> None:
    """Choose tokens of each unit, and write into ``encoded`` what became of the placeholders.

    Args:
        method: Decides.
        features: ``[..., d]`` of each image or clip, projected, in the order of its placeholders.
        encoded: With its images planned.

    Raises:
        ValueError: The method made features of its own, which nothing would project.
    """
    images = encoded.images
    flat = torch.cat([each.flatten(0, -2) for each in features])
    order = _order(images)
    hidden = flat if order is None else flat.index_select(0, copied(order, flat.device))
    units = tuple(image.tiling.grid for image in images for _ in image.tiling.boxes)
    hidden = hidden.unflatten(0, (len(units), -1))
    frames = tuple(image.tiling.frames for image in images)
    seen = VisionView(
        query_cls=None,
        keys=hidden.new_zeros((len(units), 0, hidden.shape[1], 0)),
        scale=1.0,
        positions=unit_positions(units, hidden.device),
        hidden=hidden,
        frames=frames if all(frames) else None,
    )
    _, made = run_stage_one(method, seen, encoded)
    if made is not None:
        raise ValueError(
            f"hidden must be None in the selection of a method that reads projected features, got those of "
            f"{type(method).__name__}; return what patches to keep alone"
        )


@lru_cache(_KEPT)
def _order(images: tuple[PlannedImage, ...]) -> Tensor | None:
    """Return the placeholder of each patch of each unit, ``[C * m]`` int64; any where the model uses no such patch.
    None where patches and placeholders stand in the same order.
    """
    counts = [count for image in images for count in image.tiling.counts]
    most = max(image.tiling.grid[0] * image.tiling.grid[1] for image in images)
    if min(counts) == most and not any(image.tiling.tiles[0] or image.tiling.ending for image in images):
        return None
    size = len(counts) * most
    with torch.inference_mode(False):  # it is kept
        patches = packed(torch.arange(size, device="cpu").view(-1, most), images)
        own, places = patches.masked_fill(patches < 0, size), torch.arange(len(patches), device="cpu")
        return torch.zeros(size + 1, dtype=torch.int64, device="cpu").scatter(0, own, places)[:size]
