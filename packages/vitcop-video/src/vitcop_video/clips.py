"""Clips to measure and test with, rendered here: every frame differs from every other, and looks the same each time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

from vitcop_core.files import write_whole

MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".3gp": "3gp",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".flv": "flv",
    ".wmv": "asf",
    ".asf": "asf",
    ".ogv": "ogg",
    ".ogg": "ogg",
    ".gif": "gif",
}
"""FFmpeg's names of containers, by the ending of a file's name."""

WRITES_ROTATION = hasattr(av.VideoStream, "set_display_rotation")
"""Whether this PyAV can say in a file which way is up; reading it needs nothing of the kind."""


@dataclass(frozen=True)
class ClipSettings:
    """How a clip is made.

    Attributes:
        frames: how many.
        width, height: pixels.
        codec, pixel_format: FFmpeg's names of an encoder and its input.
        rate: frames per second, where ``ticks`` does not say.
        gop: frames from one key frame to the next at most; None leaves it to the encoder.
        options: of the encoder.
        container: options of the container.
        ticks: when each frame appears, in ``time_base``; None for ``rate``.
        time_base: seconds a tick; None for one frame.
        rotation: degrees in the file's display matrix, counter-clockwise; needs a recent PyAV.
        pixel_aspect: width of a pixel over its height.
    """

    frames: int = 60
    width: int = 160
    height: int = 90
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    rate: int = 30
    gop: int | None = 12
    options: Mapping[str, str] = field(default_factory=dict)
    container: Mapping[str, str] = field(default_factory=dict)
    ticks: Sequence[int] | None = None
    time_base: Fraction | None = None
    rotation: int = 0
    pixel_aspect: Fraction = Fraction(1)


@contextmanager
def writing(
    path: Path, *, overwrite: bool = True, options: Mapping[str, str] | None = None
) -> Iterator[OutputContainer]:
    """Give a container to mux into, and put it under ``path`` when the block ends without an error.

    Args:
        path: its ending says which container.
        overwrite: whether a file that is there may be replaced.
        options: of the container.

    Raises:
        ValueError: the name ends in no container's ending.
        OSError: the file cannot be written, or is there and must not be replaced.
    """
    form = MUXERS.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"path must end in one of {', '.join(MUXERS)}, got {path}")
    # Some options make FFmpeg open the file a second time, by its name.
    with write_whole(path, overwrite=overwrite) as stream, TemporaryDirectory() as folder:
        named = Path(folder) / f"clip{path.suffix}" if "movflags" in (options or {}) else None
        try:
            with av.open(str(named) if named else stream, "w", format=form, options=dict(options or {})) as container:
                yield container
            if named:
                with named.open("rb") as written:
                    shutil.copyfileobj(written, stream)
        except av.FFmpegError as error:  # as for a disk that is full
            raise OSError(error.errno, error.strerror, str(path)) from error


def write_clip(path: Path, clip: ClipSettings) -> Path:
    """Encode a clip into a file, whose container follows from its name; return the path.

    Raises:
        ValueError: the name ends in no container's ending, the codec is none of moving pictures, or this PyAV writes no
            rotation.
        OSError: the file cannot be written.
    """
    base = clip.time_base or Fraction(1, clip.rate)
    with writing(path, options=clip.container) as container:
        stream = container.add_stream(clip.codec, rate=clip.rate, options=dict(clip.options))
        if not isinstance(stream, av.VideoStream):
            raise ValueError(f"codec must be one of moving pictures, got {clip.codec!r}")
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, clip.pixel_format
        stream.time_base = stream.codec_context.time_base = base
        if clip.gop is not None:
            stream.gop_size = clip.gop
        if clip.pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = clip.pixel_aspect
        if clip.rotation:
            if not WRITES_ROTATION:
                raise ValueError(
                    f"rotation must be 0 with PyAV {av.__version__}, got {clip.rotation}; PyAV 17 writes it"
                )
            stream.set_display_rotation(clip.rotation)
        patches = np.random.default_rng(0).integers(0, 40, (clip.height // 8 + 1, clip.width // 8 + 1, 3), np.uint8)
        texture = patches.repeat(8, 0).repeat(8, 1)[: clip.height, : clip.width]
        for number in range(clip.frames):
            frame = av.VideoFrame.from_ndarray(render(number, texture), format="rgb24")
            frame.pts, frame.time_base = (clip.ticks[number] if clip.ticks else number), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def render(number: int, texture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the frame ``number``, [H, W, 3] uint8: a ramp that moves over a texture, and a yellow square."""
    height, width = texture.shape[:2]
    image = np.roll(texture, 3 * number, axis=1)
    image[..., 0] += ((np.arange(width) + 5 * number) % 128).astype(np.uint8)
    image[..., 1] += (np.arange(height) * 127 // height).astype(np.uint8)[:, None]
    image[..., 2] += np.uint8(64 + 63 * math.sin(number / 20))  # no jump that an encoder takes for a new scene
    left = 7 * number % max(1, width - 20)
    image[10:30, left : left + 20] = (255, 255, 0)
    return image


def damage(data: bytes, seed: int) -> bytes:
    """Return a damaged copy: cut short, bits flipped, bytes replaced anywhere or at the front, or a stretch blanked."""
    random = np.random.default_rng(seed)
    content = np.frombuffer(data, dtype=np.uint8).copy()
    kind, size = seed % 5, len(content)
    if kind == 0:
        return content[: random.integers(1, size)].tobytes()
    if kind == 1:
        places = random.integers(0, size, 3)
        content[places] ^= np.left_shift(1, random.integers(0, 8, 3)).astype(np.uint8)
    elif kind == 2:
        places = random.integers(0, size, max(3, size // 200))
        content[places] = random.integers(0, 256, len(places))
    elif kind == 3:
        places = random.integers(0, min(1500, size), random.integers(1, 8))
        content[places] = random.integers(0, 256, len(places))
    else:
        start = random.integers(0, size)
        content[start : start + random.integers(1, 300)] = random.choice([0, 255])
    return content.tobytes()
