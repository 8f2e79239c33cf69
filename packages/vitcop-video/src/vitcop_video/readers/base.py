"""What the readers share: the errors, the limits, a deadline, and what a backend is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vitcop_video.readers.index import Index

MAX_PIXELS = 36_000_000
"""Pixels of a frame, as it is coded and as it is shown: 8192 x 4320."""

MAX_PACKETS = 1_000_000
"""Frames of a clip: nine hours at 30 a second."""

MAX_PACKET_BYTES = 128 * 2**20
"""Of one coded frame: a raw one of 8192 x 4320 has 101 MiB."""

MAX_BYTES = 512 * 2**20
"""Of frames in memory at once: 194 of 1280 x 720."""

BUDGET = 960 * 2**20
"""Bytes that a read may take in all, frames included: a GiB, less what an allocator wastes."""

MAX_PIXEL_ASPECT = 8
"""How many times as wide as high a pixel may be, or as high as wide."""

TIME_LIMIT = 10.0
"""Seconds that opening and reading may take unless the caller says otherwise."""

EXACT_PIXEL_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
"""Formats that the FFmpeg of every backend turns into the same RGB, bit for bit, where the height is even."""


class VideoError(ValueError):
    """A file that cannot be used as a video: the message says which, and why."""


class BackendError(Exception):
    """A backend did not do its work on a file; another one may."""


@dataclass(frozen=True)
class Deadline:
    """The moment by which a read has to be done.

    Attributes:
        limit: seconds in all; None for no limit.
        start: when it began, on the monotonic clock.
    """

    limit: float | None = None
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Seconds that remain, none below zero; None without a limit."""
        return None if self.limit is None else max(0.0, self.start + self.limit - time.monotonic())

    def check(self, path: object) -> None:
        """Raise `VideoError` once the time is over."""
        if self.limit is not None and time.monotonic() > self.start + self.limit:
            raise self.error(path)

    def error(self, path: object) -> VideoError:
        """Return what to raise once the time is over."""
        return VideoError(
            f"path must be a video that is read within time_limit, got {path}, which takes longer than {self.limit:g} "
            "s; "
            "give a window with start and end, ask for key frames or for fewer frames, or give a larger time_limit"
        )


@dataclass(frozen=True)
class Backend:
    """A decoder: what it is called, whether it is here, which files are not for it, and how it decodes.

    Attributes:
        name: as in ``backend=``.
        missing: why it cannot run on this machine; None where it can.
        refusal: why a file is not for it, although it may open it; None where it is.
        decode: upright frames, [F, H, W, 3] uint8, of ascending frame numbers without repeats, by a deadline. Raises
            `VideoError` for a damaged file or when the time is over, `BackendError` where the backend is at fault.
    """

    name: str
    missing: Callable[[], str | None]
    refusal: Callable[[Index], str | None]
    decode: Callable[[Index, Sequence[int], Deadline], NDArray[np.uint8]]


def refusal_of_rest(index: Index, containers: tuple[str, ...], codecs: tuple[str, ...]) -> str | None:
    """Return why a file is not for a backend that was tried with these containers and codecs, and is exact on them.

    Files of any other kind can be decoded a little differently, or wrongly without a word.
    """
    container = index.container.split(",")[0]
    reasons = {
        f"{container} files are not read exactly": container not in containers,
        f"{index.codec} is not read": index.codec not in codecs,
        "a fragmented MP4 is sought wrongly": index.is_fragmented,
        "interlaced frames get other colors": index.is_interlaced,
        "an edit list hides frames, which it counts": index.hides_packets,
        "the picture is mirrored or slanted": not index.orientation.is_rotation,
        "its pixels are not square, and are not made so": index.pixel_aspect != 1,
        f"{index.pixel_format} of {index.width} x {index.height} gets other colors": (
            index.pixel_format not in EXACT_PIXEL_FORMATS
            or (bool(index.height % 2) and "444" not in index.pixel_format)
        ),
        "its frames or its container are such that memory has to be limited": index.is_confined,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
