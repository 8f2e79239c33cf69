"""Reading in a process whose memory and time are limited: files that are huge, or not what they seem to be.

What a decoder or a container takes cannot be known for every file. What a process takes can be limited.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcop_video.readers.base import Deadline, VideoError
from vitcop_video.readers.child import Child, ChildError, running
from vitcop_video.readers.index import ARRAYS, Index, fields_of, index_from, lengths_of
from vitcop_video.readers.memory import confined_bytes, confined_threads

_WORKER = Path(__file__).with_name("confined_worker.py")
_CHUNK = 4 * 2**20


class MemoryLimitError(Exception):
    """The process had too little memory."""


def scan_confined(path: Path, form: str | None, deadline: Deadline) -> Index:
    """Read the index of a file as :func:`vitcop_video.readers.scan.scan` does.

    Raises:
        VideoError: as there; or it takes more memory than it may, or this system cannot limit memory.
    """
    size = confined_bytes(0)
    request = {"task": "index", "file": str(path), "form": form}
    try:
        with _asked(request, size, 1, deadline) as child:
            head = _answer(child)
            arrays = {name: np.empty(head["lengths"][name], dtype=np.int64) for name in ARRAYS}
            for name in ARRAYS:
                child.fill(arrays[name].data.cast("B"))
            return index_from(head["fields"], arrays)
    except (MemoryLimitError, ChildError) as error:
        raise _failure(path, error, size, deadline) from error


def decode_confined(index: Index, frames: Sequence[int], deadline: Deadline) -> NDArray[np.uint8]:
    """Decode as :func:`vitcop_video.readers.pyav_reader.decode` does.

    Raises:
        VideoError: as there; or it takes more memory than it may.
    """
    width, height = index.size
    pixels = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    size = confined_bytes(pixels.nbytes)
    threads = confined_threads(index, size)
    while True:
        try:
            _decode_into(pixels, index, frames, size, threads, deadline)
            return pixels
        except (MemoryLimitError, ChildError) as error:
            slow = isinstance(error, ChildError) and error.took_too_long
            if threads == 1 or slow:
                raise _failure(index.path, error, size, deadline) from error
        threads = 1


def _decode_into(
    pixels: NDArray[np.uint8], index: Index, frames: Sequence[int], size: int, threads: int, deadline: Deadline
) -> None:
    request = {
        "task": "decode",
        "file": str(index.path),
        "fields": fields_of(index),
        "lengths": lengths_of(index),
        "frames": [*map(int, frames)],
    }
    arrays = [getattr(index, name) for name in ARRAYS]
    row = 3 * index.scaled_width
    step = max(1, _CHUNK // row)
    buffer = np.empty((step, index.scaled_width, 3), dtype=np.uint8)
    with _asked(request, size, threads, deadline, arrays) as child:
        while "done" not in (head := _answer(child)):
            target = index.orientation.undo(pixels[head["place"]])
            for top in range(0, len(target), step):
                part = buffer[: len(target) - top]
                child.fill(part.data.cast("B"))
                target[top : top + step] = part


def _asked(request: dict[str, Any], size: int, threads: int, deadline: Deadline, arrays: Sequence[Any] = ()) -> Any:
    return running(
        _WORKER,
        ["-I", "-S"],
        deadline.left,
        {**request, "bytes": size, "threads": threads, "seconds": deadline.left, "path": _search_path()},
        arrays,
    )


def _search_path() -> list[str]:
    """Return where the process finds this package and PyAV: where this one did."""
    own = str(Path(__file__).parents[2])
    return [own, *(entry for entry in sys.path if entry)]


def _answer(child: Child) -> dict[str, Any]:
    head: dict[str, Any] = child.line()
    if head.get("memory"):
        raise MemoryLimitError
    if "error" in head:
        raise VideoError(head["error"])
    return head


def _failure(path: Path, error: Exception, size: int, deadline: Deadline) -> VideoError:
    if isinstance(error, ChildError) and error.took_too_long:
        return deadline.error(path)
    if isinstance(error, MemoryLimitError):
        return VideoError(
            f"path must be a video that is read in {size >> 20} MiB beside the frames that were asked for, got {path}, "
            "which takes more; ask for fewer frames, or encode it again with smaller frames"
        )
    return VideoError(f"path must be a video that can be read, got {path}: {error}")
