"""Whether a Matroska or WebM file may be read without a limit on memory.

FFmpeg makes up to some hundred bytes of every byte of a header, and unpacks frames that a track says are compressed. So
a header must be small and name no compression, and frames must stand in blocks of clusters.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from vitcop_video.readers.base import Deadline

MAX_HEADER = 2**18
"""Bytes of everything but clusters and cues."""

MAX_CUES = 4 * 2**20
MAX_ELEMENTS = 2_000_000

SEGMENT, _CLUSTER, _CUES = 0x18538067, 0x1F43B675, 0x1C53BB6B
_HEADERS = {0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1254C367, 0x1043A770, 0xEC, 0xBF}
"""EBML, SeekHead, Info, Tracks, Tags, Chapters, Void, CRC-32."""

_ENCODINGS = b"\x6d\x80"
_UNKNOWN = -1


def is_plain(file: BinaryIO, size: int, path: Path, deadline: Deadline) -> bool:
    """Return whether every element at the top of an open file of ``size`` bytes is known, and small enough.

    Raises:
        VideoError: the time is over.
    """
    at = header = cues = 0
    for _ in range(MAX_ELEMENTS):
        if at >= size:
            return at == size
        deadline.check(path)
        found = element(file, at)
        if found is None:
            return False
        kind, body, length = found
        if kind == SEGMENT:
            at = body
            continue
        if length == _UNKNOWN:
            return False
        if kind == _CUES:
            cues += length
        elif kind in _HEADERS:
            header += length
            file.seek(body)
            if length > MAX_HEADER or (kind == 0x1654AE6B and _ENCODINGS in file.read(length)):
                return False
        elif kind != _CLUSTER:
            return False
        if header > MAX_HEADER or cues > MAX_CUES:
            return False
        at = body + length
    return False


def element(file: BinaryIO, at: int) -> tuple[int, int, int] | None:
    """Return the ID of an element, where its body begins and how long it is, -1 where that is left open; or None."""
    file.seek(at)
    head = file.read(12)
    wide = _width(head, 0)
    if not 1 <= wide <= 4 or len(head) <= wide:
        return None
    long = _width(head, wide)
    if not 1 <= long <= 8 or len(head) < wide + long:
        return None
    mask = (1 << 7 * long) - 1
    length = int.from_bytes(head[wide : wide + long], "big") & mask
    return int.from_bytes(head[:wide], "big"), at + wide + long, _UNKNOWN if length == mask else length


def _width(head: bytes, place: int) -> int:
    """Return the bytes of a number of variable length, by the place of its first bit; 9 where there is none."""
    return 9 - head[place].bit_length() if place < len(head) else 9
