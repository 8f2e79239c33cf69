"""What a JPEG file holds of one picture, found without decoding anything, and what decoding it would cost."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from vitcop_llava.tools.media.orientation import exif_orientation, xmp_orientation
from vitcop_llava.tools.media.picture_files import Picture, PictureError

MAX_JPEG_PIXELS = 200_000_000

MAX_SEGMENTS = 10_000
"""Marker segments, tables and scans among them. A 64 MiB file of the longest that there can be has about 1,000."""

MAX_VISITS = 30_000_000
"""Blocks of 8 x 8 pixels that all scans together go through. Ten scans of 40 megapixels in color take 10 million."""

MAX_COEFFICIENTS = 400 * 2**20
"""Bytes that a picture of several scans takes before it becomes pixels: about 100 megapixels of a camera's."""

# What begins a marker: not a stuffed zero, not a filling byte, and not a restart inside of a scan.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOI, _EOI, _SOS, _TEM, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xFE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_READ_FRAMES = {0xC0: False, 0xC1: False, 0xC2: True}  # by marker, whether it is progressive


@dataclass(frozen=True)
class _Frame:
    """The blocks of each component by its number, and whether they come in parts."""

    width: int
    height: int
    blocks: dict[int, int]
    is_progressive: bool


def parse_jpeg(data: bytes) -> Picture:
    """Find the picture of a JPEG file.

    Raises:
        PictureError, struct.error, IndexError: It is of a rare kind, too costly to decode, or damaged.
    """
    view, kept, start, position = memoryview(data), list[memoryview](), 0, 2
    frame, scans, visits, orientations = None, 0, 0, dict[bytes, int | None]()
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(data, position)
        if match is None or data[match.end() - 1] == _EOI:
            end = len(data) if match is None else match.end()
            break
        code, position = data[match.end() - 1], match.end()
        if code < 0xC0:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        content, position = view[position + 2 : position + length], position + max(2, length)
        if code in _FRAMES:
            frame = _read_frame(code, content, frame)
        elif code == _SOS:
            if frame is None:
                raise PictureError("be a whole file, got one that is damaged or truncated (it has no size)")
            scans, visits = scans + 1, visits + _scan_blocks(content, frame)
        elif code == _COM or (0xE0 <= code <= 0xEF and not _decides_colors(code, content)):
            kept.append(view[start : match.start()])
            start = position
            name = bytes(content[:29]).split(b"\0")[0]
            if code == 0xE1 and name in (b"Exif", b"http://ns.adobe.com/xap/1.0/"):
                read = exif_orientation if name == b"Exif" else xmp_orientation
                orientations.setdefault(name, read(bytes(content)))
    else:
        raise PictureError(f"have at most {MAX_SEGMENTS:,} marker segments, got more; save it again without them")
    if frame is None:
        raise PictureError("be a whole file, got one that is damaged or truncated (it has no size)")
    if frame.width * frame.height <= MAX_JPEG_PIXELS:  # or that is what is said
        _check_cost(frame, scans, visits)
    found = [orientations.get(b"Exif"), *orientations.values()]
    kept.append(view[start:end])
    return Picture("JPEG", (frame.width, frame.height), b"".join(kept), next(filter(None, found), 1))


def _read_frame(code: int, content: memoryview, before: _Frame | None) -> _Frame:
    if code not in _READ_FRAMES:
        kind = "arithmetic coding" if code > 0xC8 else "lossless or hierarchical coding"
        raise PictureError(f"be a baseline or progressive JPEG file, got one in {kind}; save it again")
    if before is not None:
        raise PictureError("hold one picture, got several layers; save it again")
    _, height, width, count = struct.unpack_from(">BHHB", content)
    parts = [struct.unpack_from(">BBB", content, 6 + 3 * number) for number in range(count)]
    wide = max((sampling >> 4 for _, sampling, _ in parts), default=0)
    high = max((sampling & 15 for _, sampling, _ in parts), default=0)
    if not (width and height and wide and high):
        raise PictureError("be a whole file, got one that is damaged or truncated (it has no size)")
    units = -(-width // (8 * wide)) * -(-height // (8 * high))
    blocks = {number: units * (sampling >> 4) * (sampling & 15) for number, sampling, _ in parts}
    return _Frame(width, height, blocks, _READ_FRAMES[code])


def _scan_blocks(content: memoryview, frame: _Frame) -> int:
    """Return the blocks that a scan goes through."""
    parts = content[1 : 1 + 2 * content[0] : 2]
    return sum(frame.blocks.get(number, 0) for number in parts)


def _check_cost(frame: _Frame, scans: int, visits: int) -> None:
    whole = sum(frame.blocks.values())
    if visits > MAX_VISITS:
        raise PictureError(
            f"have scans that go through at most {MAX_VISITS / 1e6:.0f} million blocks, got {visits / 1e6:,.0f} "
            "million in "
            f"{scans:,} scans; save it again as a baseline JPEG file"
        )
    if (frame.is_progressive or scans > 1) and whole * 128 > MAX_COEFFICIENTS:
        raise PictureError(
            f"have at most {MAX_COEFFICIENTS // 128 * 64 / 3e6:.0f} megapixels in full color as a progressive "
            f"JPEG file, got {frame.width} x {frame.height} ({frame.width * frame.height / 1e6:.0f} megapixels); save "
            "it again as a baseline JPEG file"
        )


def _decides_colors(code: int, content: memoryview) -> bool:
    name = bytes(content[:5])
    return (code == 0xE0 and name == b"JFIF\0") or (code == 0xEE and name == b"Adobe")
