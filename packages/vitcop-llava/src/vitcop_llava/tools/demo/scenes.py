"""Scenes that the demo model knows: colored shapes with small marks on textured ground.

A scene is drawn from a seed alone, so a held-out set is a range of seeds, and a picture can always be made again.
Shapes stand in the cells of a 3 x 3 layout, with some jitter, one shape a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (44, 98, 214),
    "yellow": (240, 205, 50),
    "purple": (142, 68, 190),
    "orange": (240, 135, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
MARKS = ("dot", "bar", "ring", "tick")
CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

MAX_SHAPES = 5
_OVERSAMPLE = 2  # shapes are drawn at twice the size and reduced, which is what smooths their edges


@dataclass(frozen=True)
class SceneShape:
    """One shape of a scene. ``x``, ``y`` (its center) and ``radius`` are fractions of the picture's side."""

    shape: str
    color: str
    mark: str | None
    cell: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """The shapes of a scene in raster order of their cells, and the seed that drew them."""

    seed: int
    shapes: tuple[SceneShape, ...]


def sample_scene(seed: int) -> Scene:
    """Draw the scene of ``seed``: one to five shapes, no two alike in both color and shape."""
    rng = np.random.default_rng([seed, 0])
    count = int(rng.integers(1, MAX_SHAPES + 1))
    cells = sorted(int(c) for c in rng.choice(len(CELLS), size=count, replace=False))
    pairs = rng.choice(len(COLORS) * len(SHAPES), size=count, replace=False)
    shapes = []
    for cell, pair in zip(cells, pairs, strict=True):
        color, shape = list(COLORS)[int(pair) // len(SHAPES)], SHAPES[int(pair) % len(SHAPES)]
        mark = MARKS[int(rng.integers(len(MARKS)))] if rng.random() < 0.8 else None
        radius = float(rng.uniform(0.095, 0.135))
        jitter = rng.uniform(-0.028, 0.028, size=2)
        x, y = (cell % 3 + 0.5) / 3 + float(jitter[0]), (cell // 3 + 0.5) / 3 + float(jitter[1])
        shapes.append(SceneShape(shape, color, mark, CELLS[cell], x, y, radius))
    return Scene(seed, tuple(shapes))


def render(scene: Scene, size: int = 336) -> Image.Image:
    """Draw a scene as an RGB picture of ``size`` x ``size`` pixels; the same scene and size give the same pixels."""
    rng = np.random.default_rng([scene.seed, 1])
    picture = _ground(rng, size).resize((size * _OVERSAMPLE,) * 2, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    side = size * _OVERSAMPLE
    for item in scene.shapes:
        shade = rng.uniform(0.86, 1.08)
        fill = tuple(min(255, int(channel * shade)) for channel in COLORS[item.color])
        _draw_shape(draw, item, side, fill)
        if item.mark is not None:
            ink = (20, 20, 20) if item.color in ("yellow", "orange") else (250, 250, 250)
            _draw_mark(draw, item, side, ink)
    return picture.resize((size, size), Image.Resampling.BOX)


def shape_map(scene: Scene, size: int) -> NDArray[np.uint8]:
    """Return which shape covers each pixel: ``[size, size]``, 0 for the ground, k + 1 for ``scene.shapes[k]``."""
    picture = Image.new("L", (size, size))
    draw = ImageDraw.Draw(picture)
    for number, item in enumerate(scene.shapes, start=1):
        _draw_shape(draw, item, size, number)
    return np.asarray(picture)


def _ground(rng: np.random.Generator, size: int) -> Image.Image:
    """Return a muted ground with one of three textures: clouds, stripes or grain."""
    base = rng.uniform(90, 200) + rng.uniform(-18, 18, size=3)
    texture = rng.integers(3)
    if texture == 0:
        field = rng.normal(size=(8, 8))
    elif texture == 1:
        angle, period = rng.uniform(0, math.pi), rng.uniform(0.06, 0.16)
        axis = np.linspace(0, 1, 84)
        phase = (axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)) / period
        field = np.sin(2 * math.pi * phase)
    else:
        field = rng.normal(size=(84, 84))
    pixels = base[None, None, :] + rng.uniform(6, 16) * field[:, :, None]
    small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")
    return small.resize((size, size), Image.Resampling.BICUBIC)


def _draw_shape(draw: ImageDraw.ImageDraw, item: SceneShape, side: int, fill: tuple[int, ...] | int) -> None:
    x, y, r = item.x * side, item.y * side, item.radius * side
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        draw.rectangle((x - 0.86 * r, y - 0.86 * r, x + 0.86 * r, y + 0.86 * r), fill=fill)
    elif item.shape == "cross":
        draw.rectangle((x - r, y - 0.4 * r, x + r, y + 0.4 * r), fill=fill)
        draw.rectangle((x - 0.4 * r, y - r, x + 0.4 * r, y + r), fill=fill)
    else:
        draw.polygon([(x + r * dx, y + r * dy) for dx, dy in _OUTLINES[item.shape]], fill=fill)


def _draw_mark(draw: ImageDraw.ImageDraw, item: SceneShape, side: int, ink: tuple[int, int, int]) -> None:
    """Draw a mark, about a sixteenth of the picture wide, whatever the size of the shape that carries them."""
    x, y, u = item.x * side, item.y * side, side * 0.031
    if item.mark == "dot":
        draw.ellipse((x - 0.6 * u, y - 0.6 * u, x + 0.6 * u, y + 0.6 * u), fill=ink)
    elif item.mark == "bar":
        draw.rectangle((x - u, y - 0.28 * u, x + u, y + 0.28 * u), fill=ink)
    elif item.mark == "ring":
        draw.ellipse((x - u, y - u, x + u, y + u), outline=ink, width=max(1, round(0.42 * u)))
    else:
        points = [(x - 0.9 * u, y), (x - 0.2 * u, y + 0.8 * u), (x + u, y - 0.8 * u)]
        draw.line(points, fill=ink, width=max(1, round(0.5 * u)))


def _star() -> list[tuple[float, float]]:
    radii = [1.08 if k % 2 == 0 else 0.5 for k in range(10)]
    return [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate(radii)]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0.0, -1.1), (1.05, 0.8), (-1.05, 0.8)],
    "diamond": [(0.0, -1.15), (0.85, 0.0), (0.0, 1.15), (-0.85, 0.0)],
    "star": _star(),
}
