"""Panels of the pictures that show what survives: an image, darkened where its patches were dropped."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitcop_llava.report import StageSurvivors, Survivors

PAPER, INK = (255, 255, 255), (24, 24, 27)
_DIM = 0.26  # brightness that is left to a dropped patch
_EDGE = 0.75  # and to the line between two patches
_TINT = 0.55  # share of its cluster's color in a clustered patch

Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Looks:
    """What panels of one row have in common, whichever part of it each shows.

    Attributes:
        clustered: number of the first stage that merges clusters; None where none does.
        merges: whether any stage makes a token of several.
        clusters: how many there are.
    """

    clustered: int | None
    merges: bool
    clusters: int

    @classmethod
    def of(cls, survivors: Survivors) -> Self:
        """Return the looks of a row."""
        merging = [number for number, stage in enumerate(survivors.stages) if bool(stage.merged.any())]
        clusters = int(survivors.clusters.max()) + 1
        return cls(merging[0] if merging and clusters else None, bool(merging), clusters)

    def legend(self) -> list[tuple[str, str]]:
        """Return the looks that occur, each with what it means."""
        keys = [("dropped", "dropped")]
        if self.clustered is not None:
            keys.append(("cluster", "color: its cluster"))
        if self.merges:
            others = "the rest of its cluster" if self.clustered is not None else "dropped ones"
            keys += [("elite", "kept as it is"), ("merged", f"stands for {others}, merged")]
        return keys


class Canvas:
    """Draws the panels of one image, or of one frame of a clip.

    Args:
        view: what the model sees; its sides are multiples of the grid's.
        grid: rows and columns of patches.
        survivors: of this image's patches alone.
        looks: of the row that the image is in.
    """

    def __init__(self, view: Image.Image, grid: tuple[int, int], survivors: Survivors, looks: Looks) -> None:
        self._grid, self._survivors, self._looks = grid, survivors, looks
        self._cell = view.height // grid[0], view.width // grid[1]
        self._view: Pixels = np.asarray(view.convert("RGB")).astype(np.float64)
        self._colors = cluster_colors(looks.clusters)

    def panel(self, number: int) -> Image.Image:
        """Return what is left after a stage."""
        stage, clustered = self._survivors.stages[number], number == self._looks.clustered
        alive = np.zeros(self._survivors.patches, dtype=bool)
        # Merged patches live on in their group's token: after the cut that merges, all of a cluster still count.
        alive[self._survivors.clusters.numpy() >= 0 if clustered else stage.patches.numpy()] = True
        shown = self._view * self._spread(np.where(alive, 1.0, _DIM))
        if clustered:
            shown = self._tinted(shown, alive)
        picture = Image.fromarray(np.rint(shown * self._lines()).astype(np.uint8))
        self._mark(ImageDraw.Draw(picture), stage)
        return picture

    def _spread(self, values: Pixels) -> Pixels:
        """Spread one value a patch over the panel's pixels: ``[patches]`` to ``[height, width, 1]``."""
        rows = values.reshape(self._grid).repeat(self._cell[0], 0)
        return rows.repeat(self._cell[1], 1)[..., None]

    def _lines(self) -> Pixels:
        """Return what darkens the edges between patches: ``[height, width, 1]``."""
        factor = np.ones((*self._view.shape[:2], 1))
        factor[:: self._cell[0]] = _EDGE
        factor[:, :: self._cell[1]] = _EDGE
        return factor

    def _tinted(self, shown: Pixels, alive: NDArray[np.bool_]) -> Pixels:
        clusters = self._survivors.clusters.numpy()
        color = np.stack([self._spread(self._colors[clusters, band])[..., 0] for band in range(3)], axis=-1)
        gray = self._view.mean(axis=-1, keepdims=True)
        # Shaded by the picture, so that what is underneath can still be told.
        tinted = (1 - _TINT) * self._view + _TINT * color * (0.45 + 0.55 * gray / 255)
        return np.where(self._spread(alive.astype(np.float64)) > 0, tinted, shown)

    def _mark(self, draw: ImageDraw.ImageDraw, stage: StageSurvivors) -> None:
        height, width = self._cell
        has_merged = self._looks.merges and stage.layer is not None
        for patch, merged in zip(stage.patches.tolist(), stage.merged.tolist(), strict=True):
            top, left = patch // self._grid[1] * height, patch % self._grid[1] * width
            box = (left, top, left + width - 1, top + height - 1)
            if merged:
                draw_disc(draw, box, self._color_of(patch))
            elif has_merged:
                draw_outline(draw, box)

    def _color_of(self, patch: int) -> tuple[int, int, int]:
        cluster = int(self._survivors.clusters[patch])
        red, green, blue = self._colors[max(cluster, 0)]
        return int(red), int(green), int(blue)


def cluster_colors(count: int) -> Pixels:
    """Return ``[count, 3]`` colors in 0 to 255; neighbors in number are far apart in hue."""
    golden = 0.61803398875
    hues = [(0.58 + k * golden) % 1 for k in range(max(1, count))]
    rows = [colorsys.hsv_to_rgb(hue, 0.5 + 0.25 * (k % 2), 1.0 - 0.1 * (k % 3)) for k, hue in enumerate(hues)]
    return np.array(rows) * 255


def draw_outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    """Draw a token that is kept as it is, where others are merged."""
    width = max(2, (box[2] - box[0]) // 10)
    draw.rectangle(box, outline=INK, width=width + 1)
    draw.rectangle(box, outline=PAPER, width=width)


def draw_disc(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: tuple[int, int, int]) -> None:
    """Draw a token that stands for several."""
    inset = (box[2] - box[0]) // 6
    inner = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
    draw.ellipse(inner, fill=color, outline=INK, width=max(2, inset // 2))
