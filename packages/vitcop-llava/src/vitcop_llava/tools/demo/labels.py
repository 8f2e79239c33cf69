"""What the vision tower is taught: dense labels under each patch, and what the scene holds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitcop_llava.tools.demo.build import PATCH_SIZE
from vitcop_llava.tools.demo.scenes import CELLS, COLORS, MARKS, SHAPES, Scene, shape_map

PATCH_CLASSES = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "mark": len(MARKS) + 2, "cell": len(CELLS) + 1}
PRESENCE = len(COLORS) + len(SHAPES) + len(MARKS) + len(CELLS) + len(COLORS) * len(SHAPES)


def patch_labels(scene: Scene, grid: int) -> NDArray[np.int64]:
    """Return what the shape over each patch is: ``[grid * grid, 5]``, color, shape, mark, cell (0: ground), center
    flag.
    """
    ids = shape_map(scene, grid * PATCH_SIZE).reshape(grid, PATCH_SIZE, grid, PATCH_SIZE)
    covered = np.stack([(ids == k).mean(axis=(1, 3)).ravel() for k in range(1, len(scene.shapes) + 1)])
    owner = np.where(covered.max(axis=0) >= 0.15, covered.argmax(axis=0), -1)
    labels = np.zeros((grid * grid, 5), dtype=np.int64)
    for k, item in enumerate(scene.shapes):
        mark = 1 if item.mark is None else MARKS.index(item.mark) + 2
        row = [list(COLORS).index(item.color) + 1, SHAPES.index(item.shape) + 1, mark, CELLS.index(item.cell) + 1, 0]
        labels[owner == k] = row
        labels[int(item.y * grid) * grid + int(item.x * grid), 4] = 1
    return labels


def presence(scene: Scene) -> NDArray[np.float32]:
    """Return which colors, shapes, marks, cells and color-shape pairs the scene holds: ``[presence]`` of 0 and 1."""
    found = np.zeros(PRESENCE, dtype=np.float32)
    for item in scene.shapes:
        color, shape = list(COLORS).index(item.color), SHAPES.index(item.shape)
        offset = len(COLORS) + len(SHAPES)
        found[[color, len(COLORS) + shape]] = 1
        if item.mark is not None:
            found[offset + MARKS.index(item.mark)] = 1
        found[offset + len(MARKS) + CELLS.index(item.cell)] = 1
        found[offset + len(MARKS) + len(CELLS) + color * len(SHAPES) + shape] = 1
    return found
