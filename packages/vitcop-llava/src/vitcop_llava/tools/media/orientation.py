"""How a picture is to be held, from the metadata that says so: that one number, and nothing else of it."""

from __future__ import annotations

import re
import struct

_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_TAG = 0x0112
_TYPES = {1: "B", 3: "H", 4: "I"}


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation, 1 to 8, of Exif data; None where it has none, or is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    found = None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _TAG and kind in _TYPES:
                (found,) = struct.unpack_from(order + _TYPES[kind], exif, entry + 8)
    except struct.error:  # it breaks off, which spoils no pixel
        pass
    return found if found in range(1, 9) else None


def xmp_orientation(xmp: bytes) -> int | None:
    """Return the orientation, 1 to 8, of XMP data; None where it has none."""
    match = _XMP.search(xmp)
    return int(match[1]) if match else None
