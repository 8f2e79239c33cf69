"""What an MP4 claims about itself, before FFmpeg believes it.

FFmpeg allocates memory for every frame that a header claims, and a claim takes no room: a file of a kilobyte can ask
for gigabytes. So a header is read here first. It is plain if its boxes nest exactly, if each of the tables by which a
claim can be made stands at its place and nowhere else, and if the claims are small. Any other may still be a good file,
which is read where memory is limited.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitcop_video.readers.base import MAX_PACKET_BYTES, MAX_PACKETS, Deadline

FIRST = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
"""Boxes that such a file begins with."""

_CONTENT = (b"mdat", b"free", b"skip", b"wide")
"""Boxes that FFmpeg steps over."""

_TREE = {
    b"": ("ftyp styp moov mdat free skip wide moof mfra sidx pdin emsg prft uuid".split(), b""),
    b"moov": ("mvhd trak udta mvex meta iods free skip".split(), b""),
    b"trak": ("tkhd edts mdia udta tref tapt meta load free skip".split(), b""),
    b"edts": (["elst"], b""),
    b"mdia": ("mdhd hdlr minf elng udta free".split(), b""),
    b"minf": ("vmhd smhd gmhd nmhd hmhd hdlr dinf stbl free".split(), b""),
    b"stbl": ("stsd stts ctts cslg stsc stsz stco co64 stss stps sdtp sgpd sbgp subs free".split(), b""),
    b"moof": ("mfhd traf free".split(), b""),
    b"traf": ("tfhd tfdt trun sdtp sgpd sbgp subs free".split(), b""),
}
"""Boxes that hold others, and what they may hold."""

_CHILDREN = {name: frozenset(each.encode() for each in children) for name, (children, _) in _TREE.items()}
_TABLES = b"moov trak mdia minf stbl moof traf edts elst stsz stz2 stts ctts stsc trun cmov hoov iloc iinf ipma".split()
_HIDDEN = re.compile(b"|".join(_TABLES))
"""Names of everything that can make a claim: inside another box they are no part of an ordinary file."""

MAX_BOXES = 200_000
MAX_HEADER = 64 * 2**20
"""Bytes of boxes other than the frames' own."""


@dataclass
class Boxes:
    """What the boxes of a file say.

    Attributes:
        is_plain: it may be read without a limit on memory.
        has_table: the bytes of every frame stand in tables, and none is too large.
        cut: name of a box that ends after the file does, and where; None where there is none.
        kinds: the boxes at the top, in order.
        is_fragmented: there are fragments.
    """

    is_plain: bool = True
    has_table: bool = True
    cut: tuple[str, int] | None = None
    kinds: list[bytes] = field(default_factory=list)
    is_fragmented: bool = False


@dataclass
class _Track:
    """Claims of one track."""

    samples: int = 0
    edits: int = 0
    chunks: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)

    def total(self) -> int:
        """Return how many entries FFmpeg may make of it."""
        ends = [*(first for first, _ in self.runs[1:]), self.chunks + 1]
        in_chunks = sum(max(0, end - first) * count for (first, count), end in zip(self.runs, ends, strict=False))
        return max(self.samples, in_chunks) * max(1, self.edits)


class StrangeError(Exception):
    """The header is not one that is understood."""


def read_boxes(file: BinaryIO, size: int, path: Path, deadline: Deadline) -> Boxes:
    """Read the boxes of an open file of ``size`` bytes.

    Raises:
        VideoError: the time is over.
    """
    found = Boxes()
    walk = _Walk(file, size, path, deadline, found)
    try:
        walk.inside(b"", 0, size, None)
        walk.close()
    except StrangeError:
        found.is_plain = False
    if found.cut is not None or found.kinds.count(b"moov") != 1 or walk.claims > MAX_PACKETS:
        found.is_plain = False
    return found


class _Walk:
    """One pass over the boxes of a file."""

    def __init__(self, file: BinaryIO, size: int, path: Path, deadline: Deadline, found: Boxes) -> None:
        self._file, self._size, self._path, self._deadline, self._found = file, size, path, deadline, found
        self._boxes = self._header = self._fragments = 0
        self._tracks: list[_Track] = []
        self.claims = 0

    def close(self) -> None:
        """Add up the tracks."""
        self.claims = self._fragments + sum(track.total() for track in self._tracks)

    def inside(self, parent: bytes, at: int, end: int, track: _Track | None) -> None:
        """Read the boxes from one place to another, which they must fill."""
        strange = False
        while at < end:
            self._deadline.check(self._path)
            kind, body, after = self._box(at, end)
            if not parent:
                strange |= self._at_top(kind, at, after)
                if after > end:
                    raise StrangeError
            elif after > end or kind not in _CHILDREN[parent]:
                raise StrangeError
            self._boxes += 1
            if self._boxes > MAX_BOXES or after <= at:
                raise StrangeError
            if not strange:
                self._enter(kind, body, after, track)
            at = after
        if strange:
            raise StrangeError

    def _at_top(self, kind: bytes, at: int, after: int) -> bool:
        """Return whether a box at the top is none that is known; notes it, and whether the file ends before it does."""
        self._found.kinds.append(kind)
        known = kind in _CHILDREN[b""]
        if known and after > self._size:
            self._found.cut = kind.decode("latin-1"), after
        return not known

    def _enter(self, kind: bytes, body: int, after: int, track: _Track | None) -> None:
        if kind in (b"mdat", b"skip", b"wide"):
            return
        self._header += after - body
        if self._header > MAX_HEADER:
            raise StrangeError
        if kind == b"trak":
            track = _Track()
            self._tracks.append(track)
        self._found.is_fragmented |= kind == b"moof"
        if kind in _TREE:
            self.inside(kind, body, after, track)
            return
        content = self._content(body, after)
        if kind == b"trun":
            self._fragments += int.from_bytes(content[4:8], "big")
            self._found.has_table = False
        elif track is not None and kind in (b"stsz", b"elst", b"stsc", b"stco", b"co64"):
            self._claim(kind, content, track)
        elif kind not in (b"stts", b"ctts", b"stss", b"sdtp") and _HIDDEN.search(content):
            raise StrangeError

    def _claim(self, kind: bytes, content: bytes, track: _Track) -> None:
        if kind == b"stsz":
            each, count = (int.from_bytes(content[at : at + 4], "big") for at in (4, 8))
            sizes = np.frombuffer(content[12 : len(content) // 4 * 4], dtype=">u4")
            largest = each or (int(sizes.max()) if len(sizes) else 0)
            track.samples += count
            if largest > MAX_PACKET_BYTES:
                raise StrangeError
            return
        count = int.from_bytes(content[4:8], "big")
        if kind == b"elst":
            track.edits += count
        elif kind == b"stsc":
            table = np.frombuffer(content[8 : 8 + (len(content) - 8) // 12 * 12], dtype=">u4").reshape(-1, 3)
            track.runs += [(int(first), int(samples)) for first, samples, _ in table]
        else:
            track.chunks += count

    def _content(self, body: int, after: int) -> bytes:
        self._file.seek(body)
        return self._file.read(after - body)

    def _box(self, at: int, end: int) -> tuple[bytes, int, int]:
        """Return the kind of a box, where its body begins, and where it ends."""
        if at + 8 > end:
            raise StrangeError
        self._file.seek(at)
        head = self._file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            return kind, at + 16, at + int.from_bytes(head[8:16], "big")
        return kind, at + 8, end if length == 0 else at + length
