"""The contact sheet of a clip: its frames in a row, and under them what survives each cut."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from vitcop_llava.report import Survivors
from vitcop_llava.tools.pictures.panels import INK, PAPER, Canvas, Looks
from vitcop_llava.tools.pictures.survivors import FAINT, GAP, LEGEND, draw_legend, stage_titles, write_line

COLUMNS = 8
"""Frames side by side; more go into further bands of the sheet."""

FRAME = 168
"""Pixels along a frame's side, at most."""

NAMES, TIMES = 250, 30
"""Pixels for what is written left of the rows, and over each band."""


def contact_sheet(
    views: Sequence[Image.Image],
    seconds: Sequence[float],
    survivors: Survivors,
    grid: tuple[int, int],
    caption: str = "",
) -> Image.Image:
    """Draw the frames of a clip and, under each, what every stage left of it.

    Args:
        views: the frames as the model sees them.
        seconds: when each appears.
        survivors: of a row with this clip alone.
        grid: rows and columns of tokens of a frame.
        caption: a line under the sheet.

    Raises:
        ValueError: the survivors are not of one clip with so many frames of that grid.
    """
    tokens = grid[0] * grid[1]
    if survivors.patches != len(views) * tokens:
        raise ValueError(f"survivors must be of one clip of {len(views) * tokens} tokens, got {survivors.patches}")
    looks, side = Looks.of(survivors), max(grid) * max(1, FRAME // max(grid))
    columns, rows = min(COLUMNS, len(views)), 1 + len(survivors.stages)
    bands = -(-len(views) // columns)
    band = TIMES + rows * (side + GAP // 2) + GAP
    width = 2 * GAP + NAMES + columns * (side + GAP // 2)
    foot = LEGEND + (LEGEND if caption else 0)
    sheet = Image.new("RGB", (width, GAP + bands * band + foot), PAPER)
    draw = ImageDraw.Draw(sheet)
    names = [(f"{len(views)} frames", f"{survivors.patches} visual tokens"), *stage_titles(survivors)]
    for number, (view, second) in enumerate(zip(views, seconds, strict=True)):
        left = GAP + NAMES + number % columns * (side + GAP // 2)
        top = GAP + number // columns * band
        if number % columns == 0:
            _write_names(draw, names, top + TIMES, side)
        write_line(draw, (left, top), f"{second:.2f} s", 19, FAINT, side)
        shown = view.resize((side // max(grid) * grid[1], side // max(grid) * grid[0]), Image.Resampling.BICUBIC)
        canvas = Canvas(shown, grid, survivors.part(number * tokens, (number + 1) * tokens), looks)
        panels = [shown, *(canvas.panel(stage) for stage in range(len(survivors.stages)))]
        for row, panel in enumerate(panels):
            sheet.paste(panel, (left, top + TIMES + row * (side + GAP // 2)))
    draw_legend(draw, looks.legend(), GAP + bands * band, width)
    if caption:
        write_line(draw, (GAP, GAP + bands * band + LEGEND - 4), caption, 22, INK, width - 2 * GAP)
    return sheet


def _write_names(draw: ImageDraw.ImageDraw, names: Sequence[tuple[str, str]], top: int, side: int) -> None:
    for row, (name, where) in enumerate(names):
        start = top + row * (side + GAP // 2) + side // 2 - 26
        write_line(draw, (GAP, start), name, 23, INK, NAMES - GAP)
        write_line(draw, (GAP, start + 30), where, 18, FAINT, NAMES - GAP)
