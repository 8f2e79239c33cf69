"""What a confined process does: read the index of a file, or decode frames of it."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from vitcop_video.readers.base import Deadline
from vitcop_video.readers.index import ARRAYS, fields_of, index_from, lengths_of
from vitcop_video.readers.pyav_reader import decode_frames
from vitcop_video.readers.scan import Opening, scan


def ran_out(error: BaseException) -> bool:
    """Return whether an error comes of too little memory."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return True
        if isinstance(cause, av.FFmpegError) and cause.errno == errno.ENOMEM:
            return True
        cause = cause.__cause__
    return False


def _index(request: dict[str, Any], answer: BinaryIO) -> None:
    opening = Opening(Path(request["file"]), request["form"], is_confined=True)
    index = scan(opening, Deadline(request["seconds"]))
    answer.write(json.dumps({"fields": fields_of(index), "lengths": lengths_of(index)}).encode() + b"\n")
    for name in ARRAYS:
        answer.write(np.ascontiguousarray(getattr(index, name)).data)


def _decode(request: dict[str, Any], answer: BinaryIO) -> None:
    arrays = {name: np.empty(request["lengths"][name], dtype=np.int64) for name in ARRAYS}
    for name in ARRAYS:
        sys.stdin.buffer.readinto(arrays[name].data.cast("B"))  # type: ignore[union-attr]
    index = index_from(request["fields"], arrays)

    def keep(place: int, rows: Any) -> None:
        answer.write(json.dumps({"place": place}).encode() + b"\n")
        answer.write(np.ascontiguousarray(rows).data)

    decode_frames(index, request["frames"], keep, Deadline(request["seconds"]), request["threads"])
    answer.write(b'{"done": true}\n')


TASKS: dict[str, Callable[[dict[str, Any], BinaryIO], None]] = {"index": _index, "decode": _decode}
"""By the name that a request gives."""
