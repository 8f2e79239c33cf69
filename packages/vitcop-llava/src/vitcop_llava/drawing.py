"""The picture of what survives each cut: the image as the model sees it, and a panel for every stage."""

from __future__ import annotations

import colorsys
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitcop_llava.report import StageSurvivors, Survivors
from vitcop_llava.tiling import Tiling

PANEL = 336
"""Pixels along a panel's side, at least: the smallest multiple of the model's own side that is no smaller."""

GAP, TITLE, LEGEND = 18, 74, 50
PAPER, INK, FAINT = (255, 255, 255), (24, 24, 27), (96, 96, 104)
_LONGEST_LINE = 500  # characters, more than a picture is wide
_DIM = 0.26  # brightness that is left to a dropped patch
_EDGE = 0.75  # and to the line between two patches
_TINT = 0.55  # share of its cluster's colour in a clustered patch

Pixels = NDArray[np.float64]


def as_seen(image_processor: Any, image: Image.Image) -> Image.Image:
    """The part of the image that the model sees, as the processor resizes and crops it, but enlarged for a panel."""
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
    """As `survival_picture`, for an image in tiles: one sheet for the small copy of the whole, one for the tiles.

    Args:
        image: the picture, of any size.
        survivors: of a row with this image alone.
        tiling: how the image is tiled.
        caption: a line under the panels.

    Raises:
        ValueError: where the survivors are not of one image tiled like that.
    """
    base, (top, bottom, left, right) = tiling.counts[0], tiling.window
    if survivors.patches != tiling.tokens:
        raise ValueError(f"survivors: must be of one image of {tiling.tokens} patches, got {survivors.patches}")
    grids = [
        ("Small, as a whole", 0, base, tiling.grid),
        ("In tiles", base, tiling.tokens, (bottom - top, right - left)),
    ]
    sheets = []
    for title, start, stop, (rows, columns) in grids:
        if start < stop:
            cell = -(-PANEL // max(rows, columns))
            view = image.convert("RGB").resize((columns * cell, rows * cell), Image.Resampling.BICUBIC)
            last = caption if stop == tiling.tokens else ""
            sheets.append(survival_picture(view, survivors.part(start, stop), (rows, columns), last, title))
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, sum(before.height for before in sheets[:number])))
    return whole


def survival_picture(
    view: Image.Image, survivors: Survivors, grid: tuple[int, int], caption: str = "", title: str = "The image"
) -> Image.Image:
    """Draws the image and, beside it, what each stage left.

    Args:
        view: the image as the model sees it, from `as_seen`; its sides are multiples of the grid's.
        survivors: of a row with this image alone.
        grid: rows and columns of patches.
        caption: a line under the panels.
        title: of the first panel.

    Raises:
        ValueError: where the survivors are not of one image with that grid.
    """
    if survivors.patches != grid[0] * grid[1]:
        raise ValueError(
            f"survivors: must be of one image with {grid[0]} x {grid[1]} patches, got {survivors.patches} patches"
        )
    canvas = _Canvas(view, grid, survivors)
    panels = [(title, f"{survivors.patches} visual tokens", view)]
    for number, stage in enumerate(survivors.stages):
        before = survivors.patches if number == 0 else len(survivors.stages[number - 1].patches)
        where = "before the language model" if stage.layer is None else f"before layer {stage.layer}"
        panels.append((f"{stage.name}: {before} to {len(stage.patches)}", where, canvas.panel(number)))
    return _sheet(panels, canvas.legend(), caption)


@dataclass(frozen=True)
class _Key:
    """An entry of the legend: how a patch looks, and what that means."""

    look: str
    meaning: str


class _Canvas:
    """Draws the panels of one image."""

    def __init__(self, view: Image.Image, grid: tuple[int, int], survivors: Survivors) -> None:
        self._grid, self._survivors = grid, survivors
        self._cell = view.height // grid[0], view.width // grid[1]
        self._view: Pixels = np.asarray(view.convert("RGB")).astype(np.float64)
        self._colors = cluster_colors(int(survivors.clusters.max()) + 1)

    def panel(self, number: int) -> Image.Image:
        """What is left after a stage."""
        stage = self._survivors.stages[number]
        clustered = self._is_clustered(number)
        alive = np.zeros(self._survivors.patches, dtype=bool)
        # Merged patches live on in their group's token: after the cut that merges, all of a cluster still count.
        alive[self._survivors.clusters.numpy() >= 0 if clustered else stage.patches.numpy()] = True
        shown = self._view * self._spread(np.where(alive, 1.0, _DIM))
        if clustered:
            shown = self._tinted(shown, alive)
        picture = Image.fromarray(np.rint(shown * self._lines()).astype(np.uint8))
        self._mark(ImageDraw.Draw(picture), stage)
        return picture

    def legend(self) -> list[_Key]:
        """The looks that occur."""
        keys = [_Key("dropped", "dropped")]
        if any(self._is_clustered(number) for number in range(len(self._survivors.stages))):
            keys.append(_Key("cluster", "colour: its cluster"))
        if any(bool(stage.merged.any()) for stage in self._survivors.stages):
            keys += [_Key("elite", "kept as it is"), _Key("merged", "stands for the rest of its cluster, merged")]
        return keys

    def _is_clustered(self, number: int) -> bool:
        stages = self._survivors.stages
        first = next((k for k, stage in enumerate(stages) if bool(stage.merged.any())), None)
        return number == first

    def _spread(self, values: Pixels) -> Pixels:
        """One value a patch to the panel's pixels: ``[patches]`` to ``[height, width, 1]``."""
        rows = values.reshape(self._grid).repeat(self._cell[0], 0)
        return rows.repeat(self._cell[1], 1)[..., None]

    def _lines(self) -> Pixels:
        """What darkens the edges between patches: ``[height, width, 1]``."""
        factor = np.ones((*self._view.shape[:2], 1))
        factor[:: self._cell[0]] = _EDGE
        factor[:, :: self._cell[1]] = _EDGE
        return factor

    def _tinted(self, shown: Pixels, alive: NDArray[np.bool_]) -> Pixels:
        clusters = self._survivors.clusters.numpy()
        color = np.stack([self._spread(self._colors[clusters, band])[..., 0] for band in range(3)], axis=-1)
        grey = self._view.mean(axis=-1, keepdims=True)
        # Shaded by the picture, so that what is underneath can still be told.
        tinted = (1 - _TINT) * self._view + _TINT * color * (0.45 + 0.55 * grey / 255)
        return np.where(self._spread(alive.astype(np.float64)) > 0, tinted, shown)

    def _mark(self, draw: ImageDraw.ImageDraw, stage: StageSurvivors) -> None:
        height, width = self._cell
        has_merged = any(bool(each.merged.any()) for each in self._survivors.stages) and stage.layer is not None
        for patch, merged in zip(stage.patches.tolist(), stage.merged.tolist(), strict=True):
            top, left = patch // self._grid[1] * height, patch % self._grid[1] * width
            box = (left, top, left + width - 1, top + height - 1)
            if merged:
                _draw_disc(draw, box, self._color_of(patch))
            elif has_merged:
                _draw_outline(draw, box)

    def _color_of(self, patch: int) -> tuple[int, int, int]:
        red, green, blue = self._colors[int(self._survivors.clusters[patch])]
        return int(red), int(green), int(blue)


def cluster_colors(count: int) -> Pixels:
    """``[count, 3]`` colours in 0 to 255; neighbours in number are far apart in hue."""
    golden = 0.61803398875
    hues = [(0.58 + k * golden) % 1 for k in range(max(1, count))]
    rows = [colorsys.hsv_to_rgb(hue, 0.5 + 0.25 * (k % 2), 1.0 - 0.1 * (k % 3)) for k, hue in enumerate(hues)]
    return np.array(rows) * 255


def _draw_outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    width = max(2, (box[2] - box[0]) // 10)
    draw.rectangle(box, outline=INK, width=width + 1)
    draw.rectangle(box, outline=PAPER, width=width)


def _draw_disc(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: tuple[int, int, int]) -> None:
    inset = (box[2] - box[0]) // 6
    inner = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
    draw.ellipse(inner, fill=color, outline=INK, width=max(2, inset // 2))


def _sheet(panels: list[tuple[str, str, Image.Image]], legend: list[_Key], caption: str) -> Image.Image:
    width, height = panels[0][2].size
    foot = LEGEND + (LEGEND if caption else 0)
    total = GAP + len(panels) * (width + GAP)
    sheet = Image.new("RGB", (total, TITLE + height + foot + GAP // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (title, subtitle, panel) in enumerate(panels):
        left = GAP + number * (width + GAP)
        _write(draw, (left, 10), title, 25, INK, width)
        _write(draw, (left, 42), subtitle, 19, FAINT, width)
        sheet.paste(panel, (left, TITLE))
    _draw_legend(draw, legend, TITLE + height + 12, total)
    if caption:
        _write(draw, (GAP, TITLE + height + LEGEND + 8), caption, 22, INK, total - 2 * GAP)
    return sheet


def _draw_legend(draw: ImageDraw.ImageDraw, legend: list[_Key], top: int, width: int) -> None:
    left, side = GAP, 28
    for key in legend:
        box = (left, top, left + side - 1, top + side - 1)
        draw.rectangle(box, fill=(36, 36, 40) if key.look == "dropped" else (150, 150, 160))
        if key.look == "cluster":
            third = side // 3
            for k, color in enumerate(cluster_colors(3)):
                band = (left + k * third, top, left + (k + 1) * third - 1, top + side - 1)
                draw.rectangle(band, fill=tuple(int(channel) for channel in color))
        elif key.look == "elite":
            _draw_outline(draw, (box[0] + 4, box[1] + 4, box[2] - 4, box[3] - 4))
        elif key.look == "merged":
            _draw_disc(draw, box, (250, 190, 60))
        _write(draw, (left + side + 8, top + 1), key.meaning, 20, INK, width)
        left += side + 8 + int(draw.textlength(key.meaning, ImageFont.load_default(20))) + 30


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int
) -> None:
    """Writes a line, cut off where it would be wider than ``width``."""
    font, line = ImageFont.load_default(size), text.replace("\n", " ")[:_LONGEST_LINE]
    if len(text) > len(line) or draw.textlength(line, font) > width:
        ends = range(1, len(line) + 1)
        fits = bisect_left(ends, True, key=lambda end: draw.textlength(line[:end] + "...", font) > width)
        line = line[:fits] + "..."
    draw.text(at, line, font=font, fill=color)
