"""The picture of what survives each cut: the image as the model sees it, and a panel for every stage."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitcop_llava.families.tiling import Tiling
from vitcop_llava.report import Survivors
from vitcop_llava.tools.pictures.panels import INK, PAPER, Canvas, Looks, cluster_colors, draw_disc, draw_outline

PANEL = 336
"""Pixels along a panel's side, at least: the smallest multiple of the model's own side that is no smaller."""

GAP, TITLE, LEGEND = 18, 74, 50
FAINT = (96, 96, 104)
_LONGEST_LINE = 500  # characters, more than a picture is wide


def as_seen(image_processor: Any, image: Image.Image) -> Image.Image:
    """Return the part of the image that the model sees, as the processor resizes and crops it, but enlarged for a
    panel.
    """
    size, crop = dict(image_processor.size), dict(getattr(image_processor, "crop_size", None) or {})
    side = max(crop.values() or size.values())
    factor = -(-PANEL // side)
    arguments: dict[str, Any] = {"size": {name: value * factor for name, value in size.items()}}
    if crop:
        arguments["crop_size"] = {name: value * factor for name, value in crop.items()}
    out = image_processor(image, do_normalize=False, do_rescale=False, return_tensors="np", **arguments)
    pixels = np.asarray(out["pixel_values"])[0].transpose(1, 2, 0)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def tiled_picture(image: Image.Image, survivors: Survivors, tiling: Tiling, caption: str = "") -> Image.Image:
    """Draw what `survival_picture` draws, for an image in tiles: one sheet for the small copy, one for the tiles.

    Args:
        image: the picture, of any size.
        survivors: of a row with this image alone.
        tiling: how the image is tiled.
        caption: a line under the panels.

    Raises:
        ValueError: where the survivors are not of one image tiled like that.
    """
    base, lines = tiling.counts[0], tiling.newlines - tiling.ending
    if survivors.patches != tiling.tokens:
        raise ValueError(f"survivors must be of one image of {tiling.tokens} patches, got {survivors.patches}")
    grids = [
        ("Small, as a whole", 0, base, tiling.grid),
        ("In tiles", base, tiling.tokens, (lines, tiling.line_width)),
    ]
    sheets = []
    for title, start, stop, (rows, columns) in grids:
        if start < stop:
            view = resized(image, (rows, columns))
            last = caption if stop == tiling.tokens else ""
            part = survivors.part(start, stop)
            sheets.append(survival_picture(view, part, (rows, columns), last, title, Looks.of(survivors)))
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, sum(before.height for before in sheets[:number])))
    return whole


def squares_picture(image: Image.Image, survivors: Survivors, grid: tuple[int, int], caption: str = "") -> Image.Image:
    """Draw what `survival_picture` draws, for an image that the model sees in its own size, as squares of patches.

    Args:
        image: the picture, of any size.
        survivors: of a row with this image alone.
        grid: rows and columns of tokens.
        caption: a line under the panels.

    Raises:
        ValueError: where the survivors are not of one image with that grid.
    """
    return survival_picture(resized(image, grid), survivors, grid, caption)


def resized(image: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """Return an image whose sides are multiples of a grid's, for a panel."""
    rows, columns = grid
    cell = -(-PANEL // max(grid))
    return image.convert("RGB").resize((columns * cell, rows * cell), Image.Resampling.BICUBIC)


def survival_picture(
    view: Image.Image,
    survivors: Survivors,
    grid: tuple[int, int],
    caption: str = "",
    title: str = "The image",
    looks: Looks | None = None,
) -> Image.Image:
    """Draw the image and, beside it, what each stage left.

    Args:
        view: the image as the model sees it, from `as_seen`; its sides are multiples of the grid's.
        survivors: of a row with this image alone.
        grid: rows and columns of patches.
        caption: a line under the panels.
        title: of the first panel.
        looks: of the row that the image is a part of; None where it is all of it.

    Raises:
        ValueError: where the survivors are not of one image with that grid.
    """
    if survivors.patches != grid[0] * grid[1]:
        raise ValueError(
            f"survivors must be of one image with {grid[0]} x {grid[1]} patches, got {survivors.patches} patches"
        )
    looks = looks or Looks.of(survivors)
    canvas = Canvas(view, grid, survivors, looks)
    panels = [(title, f"{survivors.patches} visual tokens", view)]
    panels += [(*words, canvas.panel(number)) for number, words in enumerate(stage_titles(survivors))]
    return _sheet(panels, looks.legend(), caption)


def stage_titles(survivors: Survivors) -> list[tuple[str, str]]:
    """Return what to write over each stage: its name with how many tokens it leaves, and where it is."""
    found, before = [], survivors.patches
    for stage in survivors.stages:
        where = "before the language model" if stage.layer is None else f"before layer {stage.layer}"
        found.append((f"{stage.name}: {before} to {len(stage.patches)}", where))
        before = len(stage.patches)
    return found


def _sheet(panels: list[tuple[str, str, Image.Image]], legend: list[tuple[str, str]], caption: str) -> Image.Image:
    width, height = panels[0][2].size
    foot = LEGEND + (LEGEND if caption else 0)
    total = GAP + len(panels) * (width + GAP)
    sheet = Image.new("RGB", (total, TITLE + height + foot + GAP // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (title, subtitle, panel) in enumerate(panels):
        left = GAP + number * (width + GAP)
        write_line(draw, (left, 10), title, 25, INK, width)
        write_line(draw, (left, 42), subtitle, 19, FAINT, width)
        sheet.paste(panel, (left, TITLE))
    draw_legend(draw, legend, TITLE + height + 12, total)
    if caption:
        write_line(draw, (GAP, TITLE + height + LEGEND + 8), caption, 22, INK, total - 2 * GAP)
    return sheet


def draw_legend(draw: ImageDraw.ImageDraw, legend: list[tuple[str, str]], top: int, width: int) -> None:
    """Draw a line of the looks that occur, each with its meaning."""
    left, side = GAP, 28
    for look, meaning in legend:
        box = (left, top, left + side - 1, top + side - 1)
        draw.rectangle(box, fill=(36, 36, 40) if look == "dropped" else (150, 150, 160))
        if look == "cluster":
            third = side // 3
            for k, color in enumerate(cluster_colors(3)):
                band = (left + k * third, top, left + (k + 1) * third - 1, top + side - 1)
                draw.rectangle(band, fill=tuple(int(channel) for channel in color))
        elif look == "elite":
            draw_outline(draw, (box[0] + 4, box[1] + 4, box[2] - 4, box[3] - 4))
        elif look == "merged":
            draw_disc(draw, box, (250, 190, 60))
        write_line(draw, (left + side + 8, top + 1), meaning, 20, INK, width)
        left += side + 8 + int(draw.textlength(meaning, ImageFont.load_default(20))) + 30


def write_line(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int
) -> None:
    """Write a line, cut off where it would be wider than ``width``."""
    font, line = ImageFont.load_default(size), text.replace("\n", " ")[:_LONGEST_LINE]
    if len(text) > len(line) or draw.textlength(line, font) > width:
        ends = range(1, len(line) + 1)
        fits = bisect_left(ends, True, key=lambda end: draw.textlength(line[:end] + "...", font) > width)
        line = line[:fits] + "..."
    draw.text(at, line, font=font, fill=color)
