"""Reads pictures that may come from anywhere: bounded before anything is decoded, and never trusted.

Every limit is a number in this module, `picture_files` or `jpeg_files`. Together they keep any picture, its decoding
and conversion and the model's own image processor, under 1 GiB of memory and 10 seconds.
"""

from __future__ import annotations

import errno
import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vitcop_core.files import read_bytes
from vitcop_llava.tools.media.jpeg_files import MAX_JPEG_PIXELS, parse_jpeg
from vitcop_llava.tools.media.picture_files import Picture, PictureError, parse_bmp, parse_gif, parse_png, parse_webp

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What is decoded. Pillow knows many more formats, most of them rare and little tested against hostile files."""

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 40_000_000
MAX_ASPECT = 100
"""Longest side over shortest: processors scale the shortest side to a fixed size, so a line of pixels would explode."""

_STRIP = 2**20  # pixels that are converted at a time
_PARSERS: dict[bytes, tuple[Callable[[bytes], Picture], type[ImageFile]]] = {
    b"\x89PNG\r\n\x1a\n": (parse_png, PngImageFile),
    b"\xff\xd8\xff": (parse_jpeg, JpegImageFile),
    b"GIF87a": (parse_gif, GifImageFile),
    b"GIF89a": (parse_gif, GifImageFile),
    b"BM": (parse_bmp, BmpImageFile),
    b"RIFF": (parse_webp, WebPImageFile),
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class ImageError(ValueError):
    """A file that cannot be used as an image: the message says which, and why."""


class FirstFrameWarning(UserWarning):
    """An animated picture was read, of which the first frame alone is used."""


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB: upright, its first frame, transparent parts on white.

    A JPEG file of more than `MAX_PIXELS` is read at a half, a quarter or an eighth of its width and height, whichever
    is the first to fit; no model looks as closely. A `FirstFrameWarning` says that a picture is animated.

    Args:
        path: A regular file of at most `MAX_BYTES`, in one of `FORMATS`, with at most `MAX_PIXELS` pixels (JPEG:
            `MAX_JPEG_PIXELS`).

    Raises:
        ImageError: Anything else, a truncated file among them.
    """
    return _image_of(_read(path), f"image {path}")


def decode_image(data: bytes) -> Image.Image:
    """Decode the content of an image file as `read_image` reads a file.

    Raises:
        ImageError: It has more than `MAX_BYTES`, or is not what `read_image` reads.
    """
    return _image_of(_checked(data), "image")


def image_size(given: str | Path | bytes) -> tuple[int, int]:
    """Return the height and width that `read_image` or `decode_image` gives, before a large JPEG is scaled down.

    Nothing is decoded.

    Args:
        given: A file, or the content of one.

    Raises:
        ImageError: It is not one that is read.
    """
    try:
        picture, _ = _parse(_checked(given) if isinstance(given, bytes) else _read(given))
    except PictureError as error:
        raise ImageError(f"image must {error}") from error
    width, height = picture.size
    return (width, height) if picture.orientation in _SIDEWAYS else (height, width)


def _image_of(data: bytes, name: str) -> Image.Image:
    """Return the picture in the content of a file; ``name`` is what errors call it."""
    try:
        picture, kind = _parse(data)
        _check_size(name, picture)
        image = _decode(picture, kind)
    except (ImageError, MemoryError):
        raise
    except PictureError as error:
        raise ImageError(f"{name} must {error}") from error
    # Pillow's decoders raise nearly anything for damaged data: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(f"{name} must be a whole file, got one that is damaged or truncated ({error})") from error
    if picture.is_animated:
        warnings.warn(f"{name} is animated; its first frame alone is used", FirstFrameWarning, stacklevel=3)
    turn = _TURNS.get(picture.orientation)
    return image if turn is None else image.transpose(turn)


def _read(path: str | Path) -> bytes:
    """Return the content of a regular file of bounded size."""
    try:
        data = read_bytes(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise ImageError(f"image must be an existing file, got {path}") from error
    except IsADirectoryError as error:
        raise ImageError(f"image must be a file, got the folder {path}") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ImageError(f"image {path} must have at most {MAX_BYTES // 2**20} MiB, got more") from error
        raise ImageError(f"image must be a file that can be read, got {path}: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"image must be a file with something in it, got {path}, which is empty")
    return data


def _checked(data: bytes) -> bytes:
    """Return the content of a file, of bounded size."""
    if not 0 < len(data) <= MAX_BYTES:
        raise ImageError(f"image must have from 1 byte to {MAX_BYTES // 2**20} MiB, got {len(data)} bytes")
    return data


def _parse(data: bytes) -> tuple[Picture, type[ImageFile]]:
    for beginning, (parse, kind) in _PARSERS.items():
        if data.startswith(beginning) and (beginning != b"RIFF" or data[8:12] == b"WEBP"):
            try:
                return parse(data), kind
            except (struct.error, IndexError) as error:
                raise PictureError(f"be a whole file, got one that is damaged or truncated ({error})") from error
    raise PictureError(f"be one of {', '.join(FORMATS)}, got another file")


def _check_size(name: str, picture: Picture) -> None:
    (width, height), most = picture.size, MAX_JPEG_PIXELS if picture.format == "JPEG" else MAX_PIXELS
    if width * height > most:
        raise ImageError(
            f"{name} must have at most {most / 1e6:.0f} megapixels, got {width} x {height} "
            f"({width * height / 1e6:.0f} megapixels)"
        )
    if max(width, height) > MAX_ASPECT * max(1, min(width, height)):
        raise ImageError(f"{name} must not be longer than {MAX_ASPECT} times its width, got {width} x {height}")


def _decode(picture: Picture, kind: type[ImageFile]) -> Image.Image:
    # Not by Image.open, which tries formats, and has a limit on pixels of its own.
    with kind(BytesIO(picture.data)) as image:
        if image.size != picture.size:
            raise PictureError(
                f"be a whole file, got one that is damaged or truncated (its size is {image.size} and {picture.size})"
            )
        width, height = picture.size
        shrink = next(by for by in (1, 2, 4, 8) if -(-width // by) * -(-height // by) <= MAX_PIXELS)
        if shrink > 1:
            image.draft(None, (width // shrink, height // shrink))
        image.load()
        return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as RGB on white, made strip by strip: there is no third copy of all of it."""
    (width, height), found = image.size, Image.new("RGB", image.size)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        found.paste(_strip_as_rgb(image.crop(box)), box)
    return found


def _strip_as_rgb(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        wide = np.asarray(strip).astype(np.uint32)
        gray = ((wide * 255 + 32895) >> 16).astype(np.uint8)  # a 257th, rounded
        if isinstance(clear := strip.info.get("transparency"), int):
            gray[wide == clear] = 255
        return Image.fromarray(gray).convert("RGB")
    if "A" in strip.getbands() or "transparency" in strip.info:
        layer = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return strip.convert("RGB")
