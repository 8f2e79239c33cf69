"""Reads ``image_grid_thw`` and ``video_grid_thw``, and holds them against the patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcop_core.shown import shown
from vitcop_llava.families.base import Squares

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
"""The argument that tells how the patches of each kind of input lie."""

Grid = tuple[int, int, int]
"""Steps in time, rows and columns of patches."""


def readable_grids(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what of a call's arguments can be read together with its prompt: grids by kind, ``[n, 3]`` integers."""
    found = {kind: given.get(name) for kind, name in GRIDS.items()}
    return {
        kind: grid
        for kind, grid in found.items()
        if isinstance(grid, Tensor) and not grid.is_floating_point() and grid.ndim == 2 and grid.shape[1] == 3
    }


def read_grids(name: str, grids: Any, squares: Squares, numbers: npt.NDArray[np.int64] | None = None) -> list[Grid]:
    """Return the grid of each image or clip as integers; where they are on the device, one read.

    Args:
        name: The argument's.
        grids: ``[images, 3]`` integers.
        squares: How patches become tokens.
        numbers: What is in them, where that was read already.

    Raises:
        TypeError: They are no tensor of integers.
        ValueError: They are of another shape, a number is not positive, rows or columns are no whole squares, or an
            image has several steps in time.
    """
    if grids is None:
        raise ValueError(f"{name} must be given with the pixels, got None; the processor returns both")
    if not isinstance(grids, Tensor) or grids.is_floating_point() or grids.dtype == torch.bool:
        raise TypeError(f"{name} must be a tensor of integers, got {shown(grids)}")
    if grids.ndim != 2 or grids.shape[1] != 3:
        raise ValueError(f"{name} must be of shape [n, 3], steps, rows and columns, got {tuple(grids.shape)}")
    listed = grids.tolist() if numbers is None else numbers.tolist()
    found = [(int(steps), int(rows), int(columns)) for steps, rows, columns in listed]
    for grid in found:
        if min(grid) < 1 or any(extent % squares.side for extent in grid[1:]):
            raise ValueError(f"{name} must have rows and columns that are multiples of {squares.side}, got {grid}")
        if name == GRIDS["image"] and grid[0] != 1:
            raise ValueError(f"{name} must have one step in time for each image, got {grid}; give clips as videos")
    return found


def check_patches(name: str, pixels: Any, grids_name: str, grids: Sequence[Grid]) -> None:
    """Raise unless there are as many patches as the grids have places.

    Raises:
        TypeError: There are no pixels.
        ValueError: They disagree.
    """
    if not isinstance(pixels, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(pixels).__name__}")
    needed = sum(steps * rows * columns for steps, rows, columns in grids)
    if pixels.ndim != 2 or pixels.shape[0] != needed:
        raise ValueError(
            f"{name} must be of shape [{needed}, patch], the {needed} patches of {grids_name}, got "
            f"{tuple(pixels.shape)}"
        )


@lru_cache(64)
def token_places(grids: tuple[tuple[int, int], ...], window: int | None) -> tuple[tuple[int, ...], ...] | None:
    """Return where the tokens of each unit, row by row, stand in the order in which the tower has them.

    Args:
        grids: Rows and columns of tokens of each unit, in the order of the tower.
        window: Tokens on a side of the windows that it goes through one after the other; None where it goes row by row.

    Returns:
        An entry a unit, counted over all of them; those of a smaller unit repeat its last one. None where the order is
        theirs already, and all have as many.
    """
    most, start, found = max(rows * columns for rows, columns in grids), 0, []
    if window is None and all(rows * columns == most for rows, columns in grids):
        return None
    for rows, columns in grids:
        down, across = np.divmod(np.arange(rows * columns), columns)
        places = np.arange(rows * columns)
        if window is not None:
            order = np.lexsort((across, down, across // window, down // window))
            places[order] = np.arange(rows * columns)
        own = [int(place) + start for place in places]
        found.append((*own, *own[-1:] * (most - rows * columns)))
        start += rows * columns
    return tuple(found)
