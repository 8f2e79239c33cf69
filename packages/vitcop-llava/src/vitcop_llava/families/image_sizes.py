"""Reads ``image_sizes`` and holds it against ``pixel_values``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitcop_core.checks import MAX_INT, plain
from vitcop_core.shown import shown
from vitcop_llava.families.tiling import Tiling

MIN_SIDE = 2
"""Pixels. A line has no second dimension to tile, and is hardly meant as a picture."""

MAX_SIDE = MAX_INT
"""Pixels, of the size alone: what is in them is tiles of the model's size."""


def read_sizes(image_sizes: Any) -> list[tuple[int, int]]:
    """Return heights and widths as integers. Where they are a tensor on the device, this is the one read of a prefill.

    Raises:
        TypeError: They are no pairs of integers.
        ValueError: They are missing, of another shape, or out of range.
    """
    if image_sizes is None:
        raise ValueError("image_sizes must be given with pixel_values: the processor returns both, [images, 2]")
    listed = image_sizes.tolist() if hasattr(image_sizes, "tolist") else image_sizes
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise TypeError(f"image_sizes must be [images, 2], got {shown(listed)}")
    sizes = []
    for size in listed:
        pair = size.tolist() if hasattr(size, "tolist") else size
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"image_sizes must be a height and a width for each image, got {shown(pair)}")
        height, width = (plain(side) for side in pair)
        if not (type(height) is int and type(width) is int):
            raise TypeError(f"image_sizes must be integers, got {shown(pair)}")
        came = f"{shown(height)} x {shown(width)}"
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"image_sizes must be at least {MIN_SIDE} pixels, got {came}")
        if max(height, width) > MAX_SIDE:
            raise ValueError(f"image_sizes must be at most {MAX_SIDE} pixels, got {came}")
        sizes.append((height, width))
    return sizes


def read_shared(batch_num_images: Any, images: int) -> list[int] | None:
    """Return how many images each prompt has, as integers; where they are a tensor on the device, one read.

    Args:
        batch_num_images: ``[prompts]`` integers, or None where every image is alone in its prompt.
        images: How many there are.

    Raises:
        TypeError: They are no integers.
        ValueError: They are of another shape, negative, or those of another number of images.
    """
    if batch_num_images is None:
        return None
    listed = batch_num_images.tolist() if hasattr(batch_num_images, "tolist") else batch_num_images
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise TypeError(f"batch_num_images must be [prompts], got {shown(listed)}")
    counts = [plain(count) for count in listed]
    if not all(type(count) is int for count in counts):
        raise TypeError(f"batch_num_images must be integers, got {shown(listed)}")
    if min(counts, default=0) < 0 or sum(counts) != images:
        raise ValueError(f"batch_num_images must be those of the {images} image_sizes, got {shown(listed)}")
    return counts


def check_pixels(pixel_values: Any) -> None:
    """Raise ``TypeError`` unless the pictures are a tensor, as processors return them."""
    if not isinstance(pixel_values, Tensor):
        raise TypeError(f"pixel_values must be a tensor, got {type(pixel_values).__name__}")


def check_sizes(sizes: Sequence[tuple[int, int]], tilings: Sequence[Tiling], pixel_values: Any, tile_size: int) -> None:
    """Raise unless the pixels are tiles of as many images as there are sizes, and enough of them.

    Args:
        sizes: Height and width of each image.
        tilings: How they are tiled.
        pixel_values: ``[images, tiles, 3, s, s]``, those of fewer tiles padded, or ``[tiles of all images, 3, s, s]``.
        tile_size: s.

    Raises:
        TypeError: There are no pixels.
        ValueError: They disagree.
    """
    check_pixels(pixel_values)
    shape, needed = tuple(pixel_values.shape), [len(tiling.boxes) for tiling in tilings]
    if len(shape) not in (4, 5) or shape[-2:] != (tile_size, tile_size):
        raise ValueError(
            f"pixel_values must be tiles of {tile_size} x {tile_size} pixels, [images, tiles, 3, {tile_size}, "
            f"{tile_size}], got shape {shape}"
        )
    if len(shape) == 4 and shape[0] != sum(needed):
        raise ValueError(f"pixel_values must have {sum(needed)} tiles for the {len(sizes)} image_sizes, got {shape[0]}")
    if len(shape) == 4:
        return
    if shape[0] != len(sizes):
        raise ValueError(f"image_sizes must be as many as the {shape[0]} images of pixel_values, got {len(sizes)}")
    for (height, width), tiles in zip(sizes, needed, strict=True):
        if tiles > shape[1]:
            raise ValueError(
                f"pixel_values must have {tiles} tiles, the base among them, for an image of {height} x {width} "
                "pixels, "
                f"got {shape[1]}"
            )
