"""Frames the right way up: a camera held on its side writes how to turn them, not turned frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """What makes a coded frame upright: its axes swapped, then mirrored.

    Attributes:
        swaps: rows become columns.
        mirrors_x, mirrors_y: left and right, above and below change places, after the swap.
        is_exact: the file asks for this; otherwise for an odd angle or a slant, which is ignored.
    """

    swaps: bool = False
    mirrors_x: bool = False
    mirrors_y: bool = False
    is_exact: bool = True

    @property
    def is_rotation(self) -> bool:
        """Whether it is nothing but quarter turns: then a reader that knows rotation agrees."""
        return self.is_exact and (self.mirrors_x ^ self.mirrors_y ^ self.swaps) is False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of the upright frame."""
        return (height, width) if self.swaps else (width, height)

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the upright frame, a view: [H, W, 3] to [H', W', 3]."""
        if self.swaps:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]

    def undo(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of an upright frame as it is coded, to write the coded one into: the inverse of `apply`."""
        frame = frame[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]
        return frame.swapaxes(0, 1) if self.swaps else frame
