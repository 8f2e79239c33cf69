"""Pixels that are not square: frames are shown as players show them, whatever decodes."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vitcop_video import VideoError, open_video, read_video
from vitcop_video.clips import WRITES_ROTATION, ClipSettings, write_clip


def stored(path: Path, width: int) -> np.ndarray:
    """Every frame as PyAV itself scales it."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return np.stack([f.to_ndarray(format="rgb24", width=width, interpolation="BICUBIC") for f in frames])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.avi", "clip.ts"])
@pytest.mark.parametrize(
    ("aspect", "width"),
    [(Fraction(2), 128), (Fraction(1, 2), 32), (Fraction(64, 45), 91), (Fraction(8, 9), 57), (Fraction(1), 64)],
)
def test_frames_are_scaled_in_width(tmp_path: Path, backend: str, name: str, aspect: Fraction, width: int) -> None:
    path = write_clip(
        tmp_path / name, ClipSettings(frames=6, width=64, height=48, options={"bf": "0"}, pixel_aspect=aspect)
    )
    read = read_video(path, backend=backend)
    assert (read.info.width, read.info.height, read.info.pixel_aspect) == (width, 48, aspect)
    assert np.array_equal(read.frames, stored(path, width))
    if backend != "pyav" and aspect != 1 and name != "clip.ts":
        assert "pixels are not square" in (read.info.fallback or "")


@pytest.mark.skipif(not WRITES_ROTATION, reason="this PyAV writes no rotation")
@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_a_turned_clip_is_scaled_before_it_is_turned(tmp_path: Path, rotation: int, turns: int) -> None:
    clip = ClipSettings(frames=4, width=64, height=48, rotation=rotation, pixel_aspect=Fraction(2))
    path = write_clip(tmp_path / "turned.mp4", clip)
    read = read_video(path)
    upright = np.rot90(stored(path, 128), turns, axes=(1, 2))
    assert (read.info.height, read.info.width) == upright.shape[1:3]
    assert np.array_equal(read.frames, upright)


def test_the_container_has_the_last_word(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", ClipSettings(frames=4, width=64, height=48, pixel_aspect=Fraction(2)))
    content = path.read_bytes()
    at = content.find(b"pasp")
    assert struct.unpack(">II", content[at + 4 : at + 12]) == (2, 1)
    path.write_bytes(content[: at + 4] + struct.pack(">II", 3, 2) + content[at + 12 :])
    info = open_video(path).info
    assert (info.width, info.pixel_aspect) == (96, Fraction(3, 2))


@pytest.mark.parametrize("shape", [(9, 1), (1, 9), (10**6, 1), (1, 10**6)])
def test_absurd_shapes_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "clip.mp4", ClipSettings(frames=4, width=64, height=48, pixel_aspect=Fraction(2)))
    content = path.read_bytes()
    at = content.find(b"pasp")
    path.write_bytes(content[: at + 4] + struct.pack(">II", *shape) + content[at + 12 :])
    with pytest.raises(VideoError, match="at most 8 times as wide as high"):
        open_video(path)
