"""How an image lies in units, from its size alone: integers, no tensors and no model.

LLaVA-NeXT shows a picture to the vision tower as one small copy of the whole (the *base*) and as *tiles* of a larger
copy, which is padded to one of several resolutions, the *pinpoints*. Each is a unit, one forward of the tower. The
model then takes the padding off again, and ends each line of the tiles' merged grid with a newline token. Before that,
LLaVA-OneVision makes a smaller grid of a large one, by interpolation. How many tokens all that comes to follows from
height and width, before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vitcop_core.checks import check_flag, check_int, check_tuple, plain_fields, require
from vitcop_core.shown import shown

_MOST = 1000
"""Tiles in a row or a column; every one is counted."""

_FRAMES = 1_000_000
"""Likewise frames."""

Box = tuple[int, int, int, int]
"""Half-open: top, bottom, left, right."""


@dataclass(frozen=True)
class Tiling:
    """One image in units, or one clip of video.

    Attributes:
        grid: Rows and columns of patches of a unit; of tokens where the model pools them.
        tiles: Rows and columns of tiles; (0, 0) for an image that is one unit and no more.
        window: What is left of the tiles' merged grid without the padding, in patches.
        frames: Frames of a clip, each a unit; 0 for an image.
        lines: Rows and columns of tokens that the model makes of the window by interpolation; (0, 0) where each of its
            patches is one.
        ending: Whether one newline token follows everything.

    Raises:
        TypeError: A number is not an integer, a pair no tuple, or ``ending`` no bool.
        ValueError: A number is out of range.
    """

    grid: tuple[int, int]
    tiles: tuple[int, int] = (0, 0)
    window: Box = (0, 0, 0, 0)
    frames: int = 0
    lines: tuple[int, int] = (0, 0)
    ending: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        plain_fields(self)
        pairs = (("grid", 2, 1, None), ("tiles", 2, 0, _MOST), ("window", 4, 0, None), ("lines", 2, 0, None))
        for name, length, least, most in pairs:
            numbers = getattr(self, name)
            check_tuple(name, numbers, "integers")
            require(len(numbers) == length, name, f"{length} integers", numbers)
            for number in numbers:
                check_int(name, number, least, most)
        check_int("frames", self.frames, 0, _FRAMES)
        check_flag("ending", self.ending)

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """What the model uses of each unit, on its own grid: of base and frames everything, then tile by tile."""
        rows, columns = self.grid
        top, bottom, left, right = self.window
        found = [(0, rows, 0, columns)] * max(self.frames, 1)
        for down in range(self.tiles[0]):
            first, last = _within(top, bottom, down * rows, rows)
            for across in range(self.tiles[1]):
                found.append((first, last, *_within(left, right, across * columns, columns)))
        return tuple(found)

    @cached_property
    def cells(self) -> tuple[Box, ...]:
        """Which tokens of an interpolated window each tile has, by where their centers lie: boxes on the grid of
        ``lines``, tile by tile.
        """
        top, bottom, left, right = self.window
        down = [_centers(bottom - top, self.lines[0], top, self.grid[0], tile) for tile in range(self.tiles[0])]
        across = [_centers(right - left, self.lines[1], left, self.grid[1], tile) for tile in range(self.tiles[1])]
        return tuple((*rows, *columns) for rows in down for columns in across)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each unit: its eligible patches, or its part of an interpolated window; 0 for padding alone."""
        boxes = (*self.boxes[:1], *self.cells) if self.is_interpolated else self.boxes
        return tuple((bottom - top) * (right - left) for top, bottom, left, right in boxes)

    @property
    def units(self) -> tuple[int, ...]:
        """Tokens of each unit that has any: what a plan is made for."""
        return tuple(count for count in self.counts if count)

    @property
    def is_interpolated(self) -> bool:
        """Whether the tokens of the tiles are no patches, but made of several by interpolation."""
        return self.lines != (0, 0)

    @property
    def tokens(self) -> int:
        """Visual tokens of the image in the unpruned model, newlines apart."""
        return sum(self.counts)

    @property
    def line_width(self) -> int:
        """Tokens of each line of the tiles, its newline apart."""
        return self.lines[1] if self.is_interpolated else self.window[3] - self.window[2]

    @property
    def newlines(self) -> int:
        """Newline tokens in the unpruned model: one at the end of each line of the tiles' merged grid, or of all."""
        lines = self.lines[0] if self.is_interpolated else self.window[1] - self.window[0]
        return lines + self.ending

    @property
    def placeholders(self) -> int:
        """Placeholders in the prompt."""
        return self.tokens + self.newlines

    @property
    def newline_places(self) -> tuple[int, ...]:
        """Which of the placeholders are newlines."""
        rows, columns = self.grid
        lines, width = self.newlines - self.ending, self.line_width
        places = (rows * columns + line * (width + 1) + width for line in range(lines))
        return (*places, *[self.placeholders - 1] * self.ending)

    def mask(self, unit: int) -> tuple[tuple[bool, ...], ...]:
        """Return which patches of a unit the model uses, row by row."""
        top, bottom, left, right = self.boxes[unit]
        rows, columns = self.grid
        return tuple(tuple(top <= row < bottom and left <= at < right for at in range(columns)) for row in range(rows))


def _within(start: int, stop: int, origin: int, length: int) -> tuple[int, int]:
    """Return the part of ``[start, stop)`` in the ``length`` places from ``origin`` on, counted from there."""
    first = min(max(start - origin, 0), length)
    return first, min(max(stop - origin, first), length)


def _centers(length: int, tokens: int, start: int, side: int, tile: int) -> tuple[int, int]:
    """Return the tokens of one axis whose centers lie in a tile, half-open.

    Args:
        length: Patches of the window.
        tokens: What they become.
        start: The window's first patch.
        side: Patches of a tile.
        tile: Its number.
    """

    def before(edge: int) -> int:
        """Count the tokens i with start + (i + 1 / 2) length / tokens < edge."""
        return min(max(-((length - 2 * tokens * (edge - start)) // (2 * length)), 0), tokens)

    return before(tile * side), before((tile + 1) * side)


def tile_image(
    height: int, width: int, *, pinpoints: Sequence[Sequence[int]], tile_size: int, patch_size: int
) -> Tiling:
    """Return how LLaVA-NeXT tiles an image, packs its patches and leaves the padding out.

    Args:
        height: Of the picture, in pixels.
        width: Likewise.
        pinpoints: The resolutions (height, width) that the model knows, multiples of the tile size.
        tile_size: Side of a tile in pixels: the vision tower's image size.
        patch_size: Side of a patch in pixels.

    Raises:
        TypeError: A side is not an integer.
        ValueError: A side is not positive, there are no pinpoints, or one is not a multiple of the tile size.
    """
    height, width = check_int("height", height, 1), check_int("width", width, 1)
    check_pinpoints(pinpoints, tile_size)
    tile_size = check_int("tile_size", tile_size, 1)
    patch_size = check_int("patch_size", patch_size, 1, tile_size)
    best = best_pinpoint(height, width, pinpoints)
    side = tile_size // patch_size
    down, across = best[0] // tile_size, best[1] // tile_size
    rows, columns = down * side, across * side
    # In the order of operations, and with the rounding, of transformers' `unpad_image`.
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        window = (padding, rows - padding, 0, columns)
    else:
        padding = (columns - int(round(width * (rows / height), 7))) // 2
        window = (0, rows, padding, columns - padding)
    return Tiling((side, side), (down, across), window)


_SLACK = 1.1
"""How much longer than allowed the sides of a grid may be before LLaVA-OneVision interpolates it."""


def interpolate_tiles(tiling: Tiling, most: int) -> Tiling:
    """Return how LLaVA-OneVision makes fewer tokens of many tiles.

    Args:
        tiling: A tiled image.
        most: Tiles' worth of tokens that an image may have beside its base.

    Raises:
        ValueError: Nothing would be left.
    """
    top, bottom, left, right = tiling.window
    rows, columns = bottom - top, right - left
    # In the order of operations, and with the rounding, of transformers' `pack_image_features`.
    ratio = math.sqrt(rows * columns / (most * tiling.grid[0] ** 2))
    if ratio <= _SLACK:
        return tiling
    lines = (int(rows // ratio), int(columns // ratio))
    if 0 in lines:
        raise ValueError(
            f"image_sizes must be of pictures that leave a line and a column of tokens, got {rows} x {columns} patches "
            f"without padding, which become {lines[0]} x {lines[1]}"
        )
    return replace(tiling, lines=lines)


def check_pinpoints(pinpoints: Sequence[Sequence[int]], tile_size: int) -> None:
    """Raise unless there are pinpoints, all of them multiples of the tile size.

    Raises:
        TypeError: The tile size is not an integer.
        ValueError: It is not positive, there are no pinpoints, or one is not a multiple.
    """
    tile_size = check_int("tile_size", tile_size, 1)
    listed: object = pinpoints
    fits = isinstance(listed, Sequence) and len(listed) > 0 and all(_is_multiple(each, tile_size) for each in listed)
    if not fits:
        raise ValueError(
            f"image_grid_pinpoints must be pairs of multiples of the tile size {tile_size}, got {shown(pinpoints)}"
        )


def _is_multiple(point: object, tile_size: int) -> bool:
    """Return whether it is two sides, each of one to `_MOST` tiles."""
    if not isinstance(point, Sequence) or len(point) != 2 or not all(type(side) is int for side in point):
        return False
    return all(0 < side <= _MOST * tile_size and side % tile_size == 0 for side in point)


def best_pinpoint(height: int, width: int, pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the resolution (height, width) that shows most of the picture, and of those the one that wastes least."""
    best, most, least = (0, 0), -1, 0
    for tall, wide in pinpoints:
        scale = min(wide / width, tall / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        wasted = tall * wide - shown
        if shown > most or (shown == most and wasted < least):
            best, most, least = (tall, wide), shown, wasted
    return best
