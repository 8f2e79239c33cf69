"""Where the frames of a file are: its packets, read once and without decoding.

Every backend works from this index, so a frame has the same number and the same time whichever one decodes it. It holds
about thirty bytes a frame, and is all that grows with the length of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcop_video.readers.orientation import Orientation

ARRAYS = ("packets", "order", "starts", "keys")
"""The fields of an index that are arrays of int64."""


@dataclass(frozen=True, eq=False)
class Index:
    """The packets of a clip's video stream, P of them, N of which become frames.

    Attributes:
        path: absolute.
        container, codec, pixel_format: FFmpeg's names.
        width, height: of a frame as it is coded, in pixels.
        orientation: how to turn a coded frame upright.
        time_base: seconds a tick.
        packets: [P] int64, in the order of decoding: ticks at which each packet's frame appears.
        order: [N] int64, in the order of appearance: the packet of each frame.
        starts: [N] int64: the key packet to decode from, for each frame.
        keys: [K] int64: packets of key frames.
        last_duration: ticks for which the last frame stays.
        hides_packets: the container has packets that are decoded and not shown.
        is_fragmented: an MP4 without a table of its frames in its header.
        is_interlaced: the first frame is, or the stream is said to be.
        pixel_aspect: width of a pixel over its height.
        largest: bytes of the largest packet.
        form: FFmpeg's name of the container that it is opened as; None where FFmpeg has to find out.
        is_confined: it is decoded in a process of its own, whose memory is limited.
    """

    path: Path
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    orientation: Orientation
    time_base: Fraction
    packets: NDArray[np.int64]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    keys: NDArray[np.int64]
    last_duration: int
    hides_packets: bool
    is_fragmented: bool
    is_interlaced: bool
    pixel_aspect: Fraction
    largest: int
    form: str | None
    is_confined: bool

    @property
    def scaled_width(self) -> int:
        """Pixels of a frame's width once its pixels are square; the height stays."""
        return scaled_width(self.width, self.pixel_aspect)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame as it is shown: its pixels square, and upright."""
        return self.orientation.size(self.scaled_width, self.height)

    @property
    def ticks(self) -> NDArray[np.int64]:
        """[N] int64, strictly ascending: when each frame appears."""
        return self.packets[self.order]

    @property
    def key_frames(self) -> NDArray[np.int64]:
        """[K'] int64, ascending: the frames that are key frames."""
        return np.flatnonzero(self.starts == self.order)

    @property
    def has_leading_frames(self) -> bool:
        """Whether frames follow a key frame in the file and appear before it (an open group of pictures)."""
        earliest_after = np.minimum.accumulate(self.packets[::-1])[::-1]
        return bool((earliest_after[self.keys] < self.packets[self.keys]).any())

    def seconds(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return when frames appear, in seconds after the first one: float64 of the shape of ``frames``."""
        ticks = self.packets[self.order[frames]] - self.packets[self.order[0]]
        seconds: NDArray[np.float64] = ticks * float(self.time_base.numerator) / self.time_base.denominator
        return seconds


def scaled_width(width: int, pixel_aspect: Fraction) -> int:
    """Return the width that shows a frame as it is meant, as players do: the height is kept."""
    return max(1, round(width * pixel_aspect))


def fields_of(index: Index) -> dict[str, Any]:
    """Return what an index holds but for its arrays, as JSON can say it."""
    found = {name: value for name, value in vars(index).items() if name not in ARRAYS}
    found |= {"path": str(index.path), "orientation": vars(index.orientation)}
    return found | {name: str(found[name]) for name in ("time_base", "pixel_aspect")}


def lengths_of(index: Index) -> dict[str, int]:
    """Return how long its arrays are."""
    return {name: len(getattr(index, name)) for name in ARRAYS}


def index_from(fields: dict[str, Any], arrays: dict[str, Any]) -> Index:
    """Return the index that `fields_of` was made from."""
    fields = dict(fields)
    fields |= {name: Fraction(fields[name]) for name in ("time_base", "pixel_aspect")}
    fields |= {"path": Path(fields["path"]), "orientation": Orientation(**fields["orientation"])}
    return Index(**fields, **arrays)
