"""Which container a file is, by its first bytes, and whether FFmpeg may read it without a limit on its memory.

FFmpeg is told the container, so that it opens nothing else. It is free to do so in this process where what it allocates
is bounded by what was read here: a header of bounded size for most containers, a count of samples for MP4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vitcop_video.readers import matroska, mp4
from vitcop_video.readers.base import Deadline

PLAIN_BYTES = 256 * 2**20
"""A packet may be as large as its file. Files up to this size are read here, larger ones where memory is limited."""

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_MAX_AVI_HEADER = 2**18

_PLAIN_AVI_BYTES = 64 * 2**20
"""Of an AVI, whose index becomes up to four times as large in memory."""


@dataclass(frozen=True)
class Form:
    """What a file is.

    Attributes:
        name: of the container, FFmpeg's; None where the first bytes do not tell.
        is_plain: it may be read in this process.
        boxes: of an MP4 that is no longer than its file, where its parts end; None for others.
    """

    name: str | None
    is_plain: bool
    boxes: mp4.Boxes | None = None


def recognize(path: Path, deadline: Deadline) -> Form:
    """Return what a regular file is.

    Raises:
        OSError: it cannot be read.
        VideoError: the time is over.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        name = _name(head)
        if name == "mov":
            boxes = mp4.read_boxes(file, size, path, deadline)
            return Form("mov", boxes.is_plain and (size <= PLAIN_BYTES or boxes.has_table), boxes)
        if size > PLAIN_BYTES:
            return Form(name, False)
        if name == "matroska":
            return Form(name, matroska.is_plain(file, size, path, deadline))
        if name == "avi":
            return Form(name, size <= _PLAIN_AVI_BYTES and _is_plain_avi(file, size))
        return Form(name, name == "gif")


def _name(head: bytes) -> str | None:
    if head[4:8] in mp4.FIRST:
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"FLV\x01":
        return "flv"
    if head[:16] == _ASF:
        return "asf"
    if head[:4] == b"OggS":
        return "ogg"
    return None


def _is_plain_avi(file: BinaryIO, size: int) -> bool:
    """Return whether the header is small, and lists no further indexes: each can name one of the others again and
    again.
    """
    file.seek(12)
    kind = file.read(12)
    length = int.from_bytes(kind[4:8], "little")
    if kind[:4] != b"LIST" or kind[8:12] != b"hdrl" or not 4 <= length <= min(_MAX_AVI_HEADER, size):
        return False
    header = file.read(length - 4)
    if b"indx" in header:
        return False
    # What stands between the header and the frames.
    at = 20 + length + length % 2
    while at + 12 <= size and at < _MAX_AVI_HEADER:
        file.seek(at)
        kind = file.read(12)
        if kind[:4] == b"LIST" and kind[8:12] == b"movi":
            return True
        if kind[:4] not in (b"LIST", b"JUNK") or kind[8:12] == b"hdrl":
            return False
        length = int.from_bytes(kind[4:8], "little")
        at += 8 + length + length % 2
    return False
