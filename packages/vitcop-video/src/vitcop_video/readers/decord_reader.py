"""Frames by decord, in a process of its own.

decord ends the process that it runs in on some damaged files (an exception that leaves one of its threads), and also
when threads share a reader. So it runs in a worker, with a limit on memory and on time, that is gone after each read.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcop_video.readers.base import Backend, BackendError, Deadline, refusal_of_rest
from vitcop_video.readers.child import ChildError, running
from vitcop_video.readers.index import Index

CONTAINERS = ("mov", "matroska", "avi")
CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")

SECONDS = 60.0
SECONDS_PER_FRAME = 5.0
"""What a worker is given: a start, and the decoding of a long group of pictures for each frame."""

BYTES = 2**29
"""Memory that a worker may take, once it has loaded its libraries."""

_BATCH = 32 * 2**20
"""Bytes of frames that it decodes at a time."""

_WORKER = Path(__file__).with_name("decord_worker.py")


@cache
def missing() -> str | None:
    """Return why decord cannot run here; None where it can. It is not imported into this process."""
    if find_spec("decord") is None:
        return "decord is not installed"
    probe = subprocess.run(
        [sys.executable, "-P", "-c", "import decord"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if probe.returncode:
        return f"decord cannot be imported: {_last_line(probe.stderr)}"
    return None


def refusal(index: Index) -> str | None:
    """Return why a file is not for decord: its FFmpeg is 4.1, and it finds frames by counting from a key frame."""
    if index.has_leading_frames:
        return "frames appear before the key frame that they follow, which makes it miscount"
    return refusal_of_rest(index, CONTAINERS, CODECS)


def decode(index: Index, frames: Sequence[int], deadline: Deadline) -> NDArray[np.uint8]:
    """Return upright frames, [F, H, W, 3] uint8, of ascending frame numbers without repeats.

    Raises:
        VideoError: the time is over.
        BackendError: decord fails, dies or takes too long, or its frames are not those of the index.
    """
    width, height = index.size
    pixels = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    request = {
        "path": str(index.path),
        "frames": [*map(int, frames)],
        "count": len(index.order),
        "shape": list(pixels.shape),
        "seconds": index.seconds(np.asarray(frames)).tolist(),
        "bytes": BYTES,
        "at_a_time": max(1, _BATCH // pixels[0].nbytes),
    }
    limit = SECONDS + SECONDS_PER_FRAME * len(frames)
    left = deadline.left
    try:
        with running(_WORKER, ["-P"], limit if left is None else min(limit, left), request) as child:
            if error := child.line().get("error"):
                raise BackendError(f"{error}")
            child.fill(pixels.data.cast("B"))
    except ChildError as error:
        if error.took_too_long:
            deadline.check(index.path)
        raise BackendError(f"{error}") from error
    return pixels


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


BACKEND = Backend("decord", missing, refusal, decode)
