"""Frames the right way up: a camera held on its side writes how to turn them, not turned frames."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
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
        """Width and height of the upright frame."""
        return (height, width) if self.swaps else (width, height)

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The upright frame, a view: [H, W, 3] to [H', W', 3]."""
        if self.swaps:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]


def orientation_of(frame: VideoFrame) -> Orientation:
    """From the display matrix that a frame carries, if any."""
    side_data: Any = frame.side_data  # iterates over SideData, which its annotations do not say
    data = next((each for each in side_data if each.type == Type.DISPLAYMATRIX), None)
    if data is None:
        return Orientation()
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    if a and d and not b and not c:
        return Orientation(False, a < 0, d < 0)
    if b and c and not a and not d:
        return Orientation(True, c < 0, b < 0)
    return Orientation(is_exact=False)
