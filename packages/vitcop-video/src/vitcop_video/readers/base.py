"""What the readers share: the errors, and what a backend is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vitcop_video.readers.index import Index

MAX_PIXELS = 36_000_000
"""Pixels of a frame: 8192 x 4320."""

MAX_PACKETS = 4_000_000
"""Frames of a clip: 37 hours at 30 a second."""

EXACT_PIXEL_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
"""Formats that the FFmpeg of every backend turns into the same RGB, bit for bit, where the height is even."""


class VideoError(ValueError):
    """A file that cannot be used as a video: the message says which, and why."""


class BackendError(Exception):
    """A backend did not do its work on a file; another one may."""


@dataclass(frozen=True)
class Backend:
    """A decoder: what it is called, whether it is here, which files are not for it, and how it decodes.

    Attributes:
        name: as in ``backend=``.
        missing: why it cannot run on this machine; None where it can.
        refusal: why a file is not for it, although it may open it; None where it is.
        decode: upright frames, [F, H, W, 3] uint8, of ascending frame numbers without repeats. Raises `VideoError` for
            a damaged file, `BackendError` where the backend is at fault.
    """

    name: str
    missing: Callable[[], str | None]
    refusal: Callable[[Index], str | None]
    decode: Callable[[Index, Sequence[int]], NDArray[np.uint8]]


def refusal_of_rest(index: Index, containers: tuple[str, ...], codecs: tuple[str, ...]) -> str | None:
    """Why a file is not for a backend that was tried with these containers and codecs, and is exact on them.

    Files of any other kind can be decoded a little differently, or wrongly without a word.
    """
    container = index.container.split(",")[0]
    if container not in containers:
        return f"{container} files are not read exactly"
    if index.codec not in codecs:
        return f"{index.codec} is not read"
    if index.is_fragmented:
        return "a fragmented MP4 is sought wrongly"
    if index.is_interlaced:
        return "interlaced frames get other colours"
    if index.hides_packets:
        return "an edit list hides frames, which it counts"
    if not index.orientation.is_rotation:
        return "the picture is mirrored or slanted"
    if index.pixel_format not in EXACT_PIXEL_FORMATS or (index.height % 2 and "444" not in index.pixel_format):
        return f"{index.pixel_format} of {index.width} x {index.height} gets other colours"
    return None
