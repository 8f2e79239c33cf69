"""What a PNG, GIF, WebP or BMP file holds of one still picture, found without decoding anything.

The picture's own blocks are copied to a file of their own, which is what is decoded: text, color profiles, thumbnails
and further frames never reach a decoder, whatever they are and however many. What is left costs what its size says.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from vitcop_llava.tools.media.orientation import exif_orientation, xmp_orientation

MAX_BLOCKS = 100_000
"""Chunks of a PNG or WebP file, and blocks of a GIF file outside the picture: each costs a step of the walk."""

MAX_GIF_BLOCKS = 2_000_000
"""Blocks that the picture of a GIF file may be split into; usual ones have 255 bytes, which makes 260,000 in 64 MiB."""

MAX_RLE_PIXELS, MAX_RLE_BYTES = 10_000_000, 4 * 2**20
"""Of a run-length coded BMP file, which Pillow decodes slowly."""


class PictureError(ValueError):
    """A file that is not decoded; the message goes on after "must"."""


@dataclass(frozen=True)
class Picture:
    """One still picture.

    Attributes:
        format: By Pillow's name.
        size: Width and height, as they are stored.
        data: A file that holds it alone.
        orientation: 1 to 8, as Exif counts.
        is_animated: Whether it is the first of several.
    """

    format: str
    size: tuple[int, int]
    data: bytes
    orientation: int = 1
    is_animated: bool = False


def parse_png(data: bytes) -> Picture:
    """Find the default picture of a PNG file.

    Raises:
        PictureError, struct.error: It has too many chunks, or is damaged.
    """
    view, kept, position, blocks = memoryview(data), list[bytes | memoryview]([data[:8]]), 8, 0
    frames, found = 0, dict[bytes, bytes]()
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk, content = view[position : position + 12 + length], view[position + 8 : position + 8 + length]
        position, blocks = position + len(chunk), blocks + 1
        _check_count(blocks, MAX_BLOCKS, "chunks")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(bytes(chunk) if kind != b"IDAT" else chunk)
        elif kind == b"acTL":
            (frames,) = struct.unpack_from(">I", content)
        elif kind == b"eXIf":
            found.setdefault(kind, bytes(content))
        elif kind in (b"iTXt", b"zTXt", b"tEXt"):
            name, _, text = bytes(content).partition(b"\0")
            found.setdefault(name, text if kind != b"zTXt" else _inflated(name, text))
        if kind == b"IEND":
            break
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    if kind != b"IHDR":
        raise PictureError("be a whole file, got one that is damaged or truncated (it does not begin with its size)")
    return Picture("PNG", (width, height), b"".join(kept), _png_orientation(found), frames > 1)


def _inflated(name: bytes, text: bytes) -> bytes:
    """Return a compressed text, where it is one that says how to hold the picture; of bounded size."""
    if name != b"Raw profile type exif":
        return b""
    try:
        return zlib.decompressobj().decompress(text[1:], 2**18)
    except zlib.error:
        return b""


def _png_orientation(found: dict[bytes, bytes]) -> int:
    exif = found.get(b"eXIf", b"")
    if not exif and (raw := found.get(b"Raw profile type exif")):  # of ImageMagick: three lines, then hexadecimal
        try:
            exif = bytes.fromhex(b"".join(raw.split(b"\n")[3:]).decode("ascii"))
        except ValueError:
            exif = b""
    return exif_orientation(exif) or xmp_orientation(found.get(b"XML:com.adobe.xmp", b"")) or 1


def parse_gif(data: bytes) -> Picture:
    """Find the first picture of a GIF file.

    Raises:
        PictureError, IndexError, struct.error: It has no picture, too many blocks, or is damaged.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    start = position = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    control, first, blocks = b"", b"", 0
    while position < len(data) and data[position] != 0x3B:
        blocks += 1
        if data[position] == 0x2C:
            if first:
                return Picture("GIF", (width, height), first, is_animated=True)
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, position + 1)
            width, height = max(width, left + wide), max(height, top + high)  # Pillow's canvas grows with it
            colors = position + 10 + (3 << (flags & 7) + 1 if flags & 128 else 0)
            end, _ = _after_blocks(data, colors + 1, MAX_GIF_BLOCKS)
            first, position, blocks = data[:start] + control + data[position:end] + b";", end, 0
        elif data[position] == 0x21:
            end, passed = _after_blocks(data, position + 2, MAX_BLOCKS)
            if data[position + 1] == 0xF9:
                control = data[position:end]
            position, blocks = end, blocks + passed
        else:
            position += 1
        if blocks > MAX_BLOCKS and first:
            break
        _check_count(blocks, MAX_BLOCKS, "blocks before its picture")
    if not first:
        raise PictureError("be a whole file, got one that is damaged or truncated (it holds no picture)")
    return Picture("GIF", (width, height), first)


def _after_blocks(data: bytes, position: int, limit: int) -> tuple[int, int]:
    """Return where a chain of blocks with their lengths before them ends, and how many they are."""
    for count in range(limit):
        length = data[position] if position < len(data) else 0  # Pillow's decoder says what is missing
        position += 1 + length
        if not length:
            return min(position, len(data)), count + 1
    raise PictureError(f"have at most {limit:,} blocks in one chain, got more")


def parse_webp(data: bytes) -> Picture:
    """Find the first picture of a WebP file.

    Raises:
        PictureError, struct.error: It has no picture, too many chunks, or is damaged.
    """
    view, kept, position, blocks, frames = memoryview(data), list[bytes | memoryview](), 12, 0, 0
    size: tuple[int, int] | None = None
    found = dict[bytes, bytes]()
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        chunk, content = view[position : position + 8 + length + length % 2], data[position + 8 : position + 18]
        position, blocks = position + 8 + length + length % 2, blocks + 1
        _check_count(blocks, MAX_BLOCKS, "chunks")
        frames += kind == b"ANMF"
        if kind == b"VP8X" and size is None:
            # Flags of what is left out would be wrong: transparency and animation remain.
            kept.append(bytes(chunk[:8]) + bytes([content[0] & 0x12]) + bytes(chunk[9:]))
            size = int.from_bytes(content[4:7], "little") + 1, int.from_bytes(content[7:10], "little") + 1
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (kind == b"ANMF" and frames == 1):
            kept.append(chunk)
            size = size or _bitstream_size(kind, content)
        elif kind in (b"EXIF", b"XMP "):
            found.setdefault(kind, bytes(chunk[8:]))
    if size is None:
        raise PictureError("be a whole file, got one that is damaged or truncated (it holds no picture)")
    body = b"".join(kept)
    orientation = exif_orientation(found.get(b"EXIF", b"")) or xmp_orientation(found.get(b"XMP ", b"")) or 1
    return Picture("WEBP", size, struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body, orientation, frames > 1)


def _bitstream_size(kind: bytes, content: bytes) -> tuple[int, int] | None:
    """Return the size that a file without a canvas of its own has."""
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def parse_bmp(data: bytes) -> Picture:
    """Find the size of a BMP file.

    Raises:
        PictureError, struct.error: It is run-length coded and large, or damaged.
    """
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Picture("BMP", (width, height), data)
    width, height, _, _, compression = struct.unpack_from("<IiHHI", data, 18)
    height = abs(height)  # negative where the first row is at the top
    if compression in (1, 2) and (width * height > MAX_RLE_PIXELS or len(data) > MAX_RLE_BYTES):
        raise PictureError(
            f"have at most {MAX_RLE_PIXELS / 1e6:.0f} megapixels in {MAX_RLE_BYTES // 2**20} MiB as a run-length "
            f"coded BMP file, got {width} x {height} in {len(data):,} bytes; save it as PNG"
        )
    return Picture("BMP", (width, height), data)


def _check_count(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise PictureError(f"have at most {limit:,} {what}, got more; save it again without them")
