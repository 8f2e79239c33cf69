"""Which unit each token of an interpolated grid belongs to: index arithmetic, from integers of the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from vitcop_llava.families import Parts
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.sequence.segment import on_device


def mixed_units(tilings: Iterable[Tiling], parts: Parts) -> tuple[int, ...]:
    """Return the units, by number, whose tokens the model mixes of several patches behind the projector."""
    mixes_frames = parts.video is not None and parts.video.pool is None
    found, start = list[int](), 0
    for tiling in tilings:
        stop = start + len(tiling.boxes)
        if tiling.is_interpolated:
            found += range(start + 1, stop)  # all but the base
        elif tiling.frames and mixes_frames:
            found += range(start, stop)
        start = stop
    return tuple(found)


def tile_index(tiling: Tiling, device: torch.device) -> Tensor:
    """Return which tokens of an interpolated grid each tile has: ``[tiles, m]`` int64.

    They are in raster order, both of the grid and of the tile. After a tile's own comes the number one past the last.
    """
    rows, columns = tiling.lines
    table = [
        (top * columns + left, max(right - left, 1), (bottom - top) * (right - left))
        for top, bottom, left, right in tiling.cells
    ]
    corners, widths, counts = on_device(table, device).unbind(1)
    number = torch.arange(max(count for _, _, count in table), device=device)
    down = torch.div(number, widths[:, None], rounding_mode="floor")
    index = corners[:, None] + down * (columns - widths)[:, None] + number
    return index.masked_fill(number >= counts[:, None], rows * columns)


def of_tiles(lines: Tensor, index: Tensor) -> Tensor:
    """Take the tokens of each tile.

    Args:
        lines: ``[tokens of the grid, d]``.
        index: ``[tiles, m]`` int64, of `tile_index`.

    Returns:
        ``[tiles, m, d]``, 0 after a tile's own.
    """
    taken = functional.pad(lines, (0, 0, 0, 1)).index_select(0, index.flatten())
    return taken.view(*index.shape, -1)


def of_lines(tokens: Tensor, index: Tensor, tiling: Tiling) -> Tensor:
    """Put the tokens of each tile, ``[tiles, m, ...]``, in the grid's raster order: ``[tokens of the grid, ...]``."""
    rows, columns = tiling.lines
    room = tokens.new_zeros((rows * columns + 1, *tokens.shape[2:]))
    return room.index_copy(0, index.flatten(), tokens.flatten(0, 1))[:-1]
