"""Whether a file ends before it should, where its container says how long it is.

Transport streams, program streams, live FLV and WebM, and fragmented MP4 without an index say nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from vitcop_video.readers import matroska
from vitcop_video.readers.base import Deadline
from vitcop_video.readers.forms import Form

_TAIL = 2**17
_LIVE = 1
"""The flag of an ASF that was sent while it was made, and so could not know its length."""


def cut_short(path: Path, form: Form, deadline: Deadline) -> str | None:
    """Return why a file is not whole; None where it is, or does not say.

    Raises:
        OSError: it cannot be read.
        VideoError: the time is over.
    """
    size = path.stat().st_size
    if form.name == "mov":
        return _mp4(form, size)
    with path.open("rb") as file:
        if form.name == "gif":
            return _gif(file, lambda: deadline.check(path))
        check = {"avi": _avi, "matroska": _matroska, "flv": _flv, "ogg": _ogg, "asf": _asf}.get(form.name or "")
        return check(file, size) if check else None


def _mp4(form: Form, size: int) -> str | None:
    boxes = form.boxes
    if boxes is None:
        return None
    if boxes.cut:
        kind, end = boxes.cut
        return f"its part {kind!r} should end at byte {end}, and the file has {size}"
    if b"moov" not in boxes.kinds and b"mdat" in boxes.kinds:
        return "its header, which stands at the end, is missing"
    if boxes.kinds and boxes.kinds[-1] == b"moof":
        return "its last fragment has a header and no frames"
    return None


def _gif(file: BinaryIO, tick: Callable[[], None]) -> str | None:
    """Follow the blocks to the trailer."""
    cut = "it has no trailer, which ends every GIF"
    head = file.read(13)
    if len(head) < 13:
        return cut
    _skip_colors(file, head[10])
    while True:
        tick()
        kind = file.read(1)
        if kind == b";":
            return None
        if kind == b"!":
            file.seek(1, 1)
        elif kind == b",":
            place = file.read(9)
            if len(place) < 9:
                return cut
            _skip_colors(file, place[8])
            file.seek(1, 1)
        elif not kind:
            return cut
        else:
            return None  # rubbish between blocks: damaged rather than cut
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], 1)
        if not length:
            return cut


def _skip_colors(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 * 2 ** (flags % 8 + 1), 1)


def _avi(file: BinaryIO, size: int) -> str | None:
    file.seek(4)
    promised = 8 + int.from_bytes(file.read(4), "little")
    if size < promised <= 2**32 - 2**16:  # a program that could not go back leaves the largest number, or zero
        return f"its header promises {promised} bytes, and the file has {size}"
    return None


def _matroska(file: BinaryIO, size: int) -> str | None:
    """Follow the elements at the top to the end, as far as they say how long they are."""
    at = 0
    for _ in range(matroska.MAX_ELEMENTS):
        if at >= size:
            return None
        found = matroska.element(file, at)
        if found is None:
            return "it ends in the midst of an element" if at > size - 12 else None
        kind, body, length = found
        if length >= 0 and body + length > size:
            what = "segment" if kind == matroska.SEGMENT else "last element"
            return f"its {what} should end at byte {body + length}, and the file has {size}"
        if kind == matroska.SEGMENT:
            if length >= 0:
                return None
            at = body
        elif length < 0:
            return None
        else:
            at = body + length
    return None


def _flv(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    head = file.read(_TAIL)
    place = head.find(b"\x00\x08filesize\x00")
    if place >= 0 and len(head) >= place + 19:
        promised = struct.unpack(">d", head[place + 11 : place + 19])[0]
        if size < promised < 2**53:
            return f"its header promises {promised:.0f} bytes, and the file has {size}"
    file.seek(size - 4)
    last = int.from_bytes(file.read(4), "big")
    if size > 13 and not 11 <= last <= size - 17:
        return "it ends in the midst of a frame"
    file.seek(max(0, size - 4 - last))
    tag = file.read(4)
    if size > 13 and (tag[:1] not in (b"\x08", b"\x09", b"\x12") or int.from_bytes(tag[1:4], "big") + 11 != last):
        return "it ends in the midst of a frame"
    return None


def _ogg(file: BinaryIO, size: int) -> str | None:
    """Look at the last page: it ends with the file, and says that a stream ends."""
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    at = tail.rfind(b"OggS\0")
    if at < 0 or len(tail) < at + 27:
        return "it ends in the midst of a page"
    laces = tail[at + 27 : at + 27 + tail[at + 26]]
    if len(laces) < tail[at + 26] or at + 27 + len(laces) + sum(laces) > len(tail):
        return "it ends in the midst of a page"
    return None if tail[at + 5] & 4 else "its last page is not marked as the last"


def _asf(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    head = file.read(2**16)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at < 0 or len(head) < at + 92:
        return None
    promised, flags = struct.unpack_from("<Q", head, at + 40)[0], struct.unpack_from("<I", head, at + 88)[0]
    if not flags & _LIVE and size < promised:
        return f"its header promises {promised} bytes, and the file has {size}"
    return None
