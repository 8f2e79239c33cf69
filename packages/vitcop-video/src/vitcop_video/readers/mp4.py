"""What an MP4 claims about itself, before FFmpeg believes it.

FFmpeg allocates 24 bytes for every frame that an MP4's header claims, so a file of a kilobyte could ask for gigabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from vitcop_video.readers.base import MAX_PACKETS, VideoError

_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
"""Where the number of frames stands in the body of a box that has one."""

_MAX_BOXES = 1_000_000


def check_sample_counts(path: Path) -> None:
    """Refuses a file whose boxes claim more than `MAX_PACKETS` frames in all; a file that is no MP4 passes.

    Raises:
        VideoError: it claims more, or is made of absurdly many boxes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        spans = [(0, size)]
        claimed = boxes = 0
        while spans:
            at, end = spans.pop()
            if at + 8 > end:
                continue
            kind, body, after = _box(file, at, end)
            if after <= at or after > end:
                continue
            spans.append((after, end))
            if kind in _FOLDERS:
                spans.append((body, after))
            elif kind in _COUNTS:
                file.seek(body + _COUNTS[kind])
                claimed += int.from_bytes(file.read(4), "big")
            boxes += 1
            if claimed > MAX_PACKETS or boxes > _MAX_BOXES:
                what = f"{claimed} frames" if claimed > MAX_PACKETS else f"more than {_MAX_BOXES} boxes"
                raise VideoError(f"path: the header of {path} claims {what}; at most {MAX_PACKETS} frames are read")


def _box(file: BinaryIO, at: int, end: int) -> tuple[bytes, int, int]:
    """Kind, where the body begins, and where the box ends."""
    file.seek(at)
    head = file.read(16)
    length, kind = int.from_bytes(head[:4], "big"), head[4:8]
    if length == 1:
        return kind, at + 16, at + int.from_bytes(head[8:16], "big")
    return kind, at + 8, end if length == 0 else at + max(length, 0)
