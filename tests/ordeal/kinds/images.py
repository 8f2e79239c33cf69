"""Pictures: files of every format that is read, and of some that are not, with bytes and sizes that make no sense."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ordeal.mutate import NUMBERS, mutated
from ordeal.trials import Trial, demand, documented
from vitcop_llava.tools.media.images import FirstFrameWarning, ImageError, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tiff", "", ".txt")
_PNG = b"\x89PNG\r\n\x1a\n"
_PINPOINTS = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]


def prepare(folder: Path) -> Trial:
    """Makes good files; a trial damages one, reads it, and gives it to a model's image processor."""
    warnings.simplefilter("ignore", FirstFrameWarning)
    good = good_files()
    plain = CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    tiled = LlavaNextImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=_PINPOINTS
    )

    def trial(random: Random) -> None:
        path = folder / f"case{random.choice(SUFFIXES)}"
        path.write_bytes(damaged_picture(good, random))
        try:
            with documented(ImageError):
                image = read_image(path)
            demand(image.mode == "RGB" and min(image.size) > 0, f"a picture of {image.mode} and {image.size}")
            for process in (plain, tiled):
                given: Any = process(image, return_tensors="np")
                demand(bool(np.isfinite(given["pixel_values"]).all()), "pixels that are not finite")
        finally:
            path.unlink()

    return trial


def damaged_picture(good: list[bytes], random: Random) -> bytes:
    """A file that is damaged, made of parts with odd numbers, or at times whole."""
    data = random.choice(good)
    what = random.random()
    if what < 0.1:
        return made_png(random)
    if what < 0.2:
        data = with_odd_size(data, random)
    if what < 0.15 or what > 0.97:
        return data
    data = mutated(data, random, random.choice(good))
    # What has a checksum is looked at no further where it is wrong.
    return repaired_png(data) if data.startswith(_PNG) and random.random() < 0.7 else data


def good_files() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").resize((90, 70), Image.Resampling.BICUBIC)
    files = [
        *(saved("PNG", image.convert(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        saved("PNG", Image.fromarray(np.arange(6300, dtype=np.uint16).reshape(70, 90) * 10)),
        saved("PNG", image.convert("P"), transparency=3),
        saved("PNG", image.convert("RGB"), transparency=(1, 2, 3), exif=orientation(6)),
        saved("PNG", image, save_all=True, append_images=[image.rotate(90)]),
        *(saved("JPEG", image.convert(mode)) for mode in ("L", "RGB", "CMYK")),
        saved("JPEG", image.convert("RGB"), progressive=True, exif=orientation(5)),
        saved("JPEG", image.convert("RGB"), subsampling=0, quality=98, restart_marker_blocks=2),
        saved("JPEG", image.convert("RGB").resize((600, 400)), progressive=True),
        saved("WEBP", image), saved("WEBP", image, lossless=True), saved("WEBP", image.convert("RGB"), quality=30),
        saved("WEBP", image, save_all=True, append_images=[image.rotate(90)]),
        saved("GIF", image.convert("P")), saved("GIF", image.convert("P"), transparency=0, interlace=1),
        saved("GIF", image, save_all=True, append_images=[image.rotate(90)], loop=0),
        *(saved("BMP", image.convert(mode)) for mode in ("1", "L", "P", "RGB", "RGBA")),
        saved("TIFF", image), saved("ICO", image), saved("PPM", image.convert("RGB")), saved("TGA", image),
        saved("PNG", Image.new("L", (1, 1))), saved("PNG", Image.new("RGB", (1, 100))), b"Not a picture.\n" * 50,
    ]  # fmt: skip
    return files


def saved(form: str, image: Image.Image, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **how)
    return stream.getvalue()


def orientation(value: int) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x0112, 3, 1, value, 0) + bytes(4)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def made_png(random: Random) -> bytes:
    """A PNG file whose checksums are right, and whose numbers fit together now and then."""
    sides = (1, 2, 3, 16, 99, 100, 101, 1000, 6324, 20_000, 2**16, 2**31 - 1, 2**32 - 1)
    width, height = random.choice(sides), random.choice(sides)
    depth, color = random.choice((1, 2, 4, 8, 16, 3, 0)), random.choice((0, 2, 3, 4, 6, 1))
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, random.choice((0, 0, 0, 1, 2)))
    rows = bytes(min(10**7, height * (1 + -(-width * depth * 4 // 8)))) if random.random() < 0.7 else b"\4" * 500
    parts = [chunk(b"IHDR", head)]
    if random.random() < 0.6:
        parts.append(chunk(b"PLTE", bytes(random.choice((3, 768, 769, 0)))))
    if random.random() < 0.4:
        parts.append(chunk(b"tRNS", bytes(random.choice((0, 1, 2, 6, 256)))))
    if random.random() < 0.2:
        parts.append(chunk(random.choice((b"zTXt", b"iCCP", b"iTXt")), b"a\0\0" + zlib.compress(bytes(2**20))))
    parts += [chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")]
    if random.random() < 0.2:
        random.shuffle(parts)
    return _PNG + b"".join(parts)


def with_odd_size(data: bytes, random: Random) -> bytes:
    """The file with other numbers where its format has the size."""
    places = {_PNG[:4]: (16, ">I"), b"GIF8": (6, "<H"), b"BM": (18, "<I"), b"RIFF": (24, "<H")}
    found = bytearray(data)
    place, width = next((at for begin, at in places.items() if data.startswith(begin)), (0, ""))
    if data.startswith(b"\xff\xd8"):
        place, width = (
            max(0, next((data.find(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data), 0)) + 5,
            ">H",
        )
    if width:
        size = struct.calcsize(width)
        for at in (place, place + size)[: random.choice((1, 2))]:
            found[at : at + size] = struct.pack(width, random.choice(NUMBERS) % 256**size)
    return repaired_png(bytes(found)) if data.startswith(_PNG) else bytes(found)


def repaired_png(data: bytes) -> bytes:
    """The file with right checksums, as far as its chunks can be told apart."""
    found, position = bytearray(data), 8
    while position + 12 <= len(found):
        (length,) = struct.unpack_from(">I", found, position)
        end = position + 8 + length
        if end + 4 > len(found):
            break
        struct.pack_into(">I", found, end, zlib.crc32(found[position + 4 : end]))
        position = end + 4
    return bytes(found)
