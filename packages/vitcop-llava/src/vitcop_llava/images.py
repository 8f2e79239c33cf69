"""Reads pictures that may come from anywhere: bounded before anything is decoded, and never trusted."""

from __future__ import annotations

import os
import stat
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What is decoded. Pillow knows many more formats, most of them rare and little tested against hostile files."""

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000
MAX_ASPECT = 100
"""Longest side over shortest: processors scale the shortest side to a fixed size, so a line of pixels would explode."""


class ImageError(ValueError):
    """A file that cannot be used as an image: the message says which, and why."""


def read_image(path: str | Path) -> Image.Image:
    """Reads an image file as RGB: upright, its first frame, transparent parts on white.

    Args:
        path: a regular file of at most `MAX_BYTES`, in one of `FORMATS`, with at most `MAX_PIXELS` pixels.

    Raises:
        ImageError: for anything else, a truncated file among them.
    """
    data = BytesIO(_read_bytes(Path(path)))
    # Pillow warns of sizes that are refused here anyway, and of metadata that is not used.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(data, formats=FORMATS) as image:
                _check_size(path, *image.size)
                image.load()
                return _as_rgb(_upright(image))
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(f"image: {path} is too large to decode: {error}") from error
        except UnidentifiedImageError as error:
            expected = ", ".join(FORMATS)
            raise ImageError(f"image: {path} is not an image that can be read; expected {expected}") from error
        # Pillow's decoders raise nearly anything for damaged data: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            raise ImageError(f"image: {path} is damaged or truncated ({error})") from error


def _read_bytes(path: Path) -> bytes:
    """The content of a regular file of bounded size."""
    # Asked before opening, since opening a device can have effects, and after, since the file may have been replaced.
    # O_NONBLOCK keeps a pipe from waiting for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_regular(path, path.stat())
        with os.fdopen(os.open(path, flags), "rb") as stream:
            _check_regular(path, os.fstat(stream.fileno()))
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageError(f"image: no such file: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"image: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise ImageError(f"image: {path} is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"image: {path} must have at most {MAX_BYTES // 2**20} MiB, and has more")
    return data


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"image: must be a file, got the folder {path}")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"image: must be a regular file, got {path}, a pipe, socket or device")


def _check_size(path: str | Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"image: {path} must have at most {MAX_PIXELS / 1e6:.0f} megapixels, got {width} x {height} "
            f"({width * height / 1e6:.0f} megapixels)"
        )
    if max(width, height) > MAX_ASPECT * max(1, min(width, height)):
        raise ImageError(f"image: {path} must not be longer than {MAX_ASPECT} times its width, got {width} x {height}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata, of which there is much, does not spoil the pixels
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")
