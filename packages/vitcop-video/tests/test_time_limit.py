"""How long a read may take: a clear error with the remedy, in every process and for every reader."""

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from vitcop_video import VideoError, open_video, read_video
from vitcop_video.clips import ClipSettings, write_clip
from vitcop_video.readers.base import Deadline

Make = Callable[[str], Path]


@pytest.mark.parametrize("name", ["b-frames.mp4", "stream.ts", "vp9.webm", "motion.avi"])
def test_time_is_over(clip: Make, name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(VideoError, match=r"which takes longer than 0\.0001 s; give a window"):
        open_video(clip(name), time_limit=0.0001)
    assert time.monotonic() - begin < 5


def test_a_long_decode_is_ended(tmp_path: Path, backend: str) -> None:
    quick = {"preset": "ultrafast"}  # to encode: decoding takes far longer than the limit all the same
    path = write_clip(tmp_path / "long.mp4", ClipSettings(frames=900, width=640, height=480, gop=900, options=quick))
    video = open_video(path, backend, time_limit=0.1)
    begin = time.monotonic()
    with pytest.raises(VideoError, match=r"which takes longer than 0\.1 s"):
        video.frames(range(0, 900, 3))
    assert time.monotonic() - begin < 3


def test_without_a_limit(clip: Make) -> None:
    assert len(read_video(clip("b-frames.mp4"), time_limit=None).frames) == 8
    assert Deadline().left is None


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**400, ValueError),
        pytest.param(10**5000, ValueError, id="thousands of digits"),
        (Fraction(10**400), ValueError),
        (True, TypeError),
        ("10", TypeError),
    ],
)
def test_limits_that_are_none(clip: Make, limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="time_limit must be a number of seconds in") as caught:
        read_video(clip("b-frames.mp4"), time_limit=limit)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), Fraction(10**400), pytest.param(10**5000, id="thousands of digits")]
)
def test_moments_of_any_size_are_out_of_range(clip: Make, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be in") as caught:
        read_video(clip("b-frames.mp4"), **{name: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value", [10**299, Fraction(10**299), 10**400, Fraction(10**400), Fraction(1, 10**400)], ids=lambda value: "huge"
)
def test_rates_of_any_size_are_out_of_range(clip: Make, value: Any) -> None:
    with pytest.raises(ValueError, match=r"fps must be (at most 30|a number from 1e-300)") as caught:
        read_video(clip("b-frames.mp4"), fps=value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["frames", "indices"])
def test_counts_of_any_size_are_out_of_range(clip: Make, name: str) -> None:
    given: dict[str, Any] = {name: 10**400 if name == "frames" else [10**400]}
    with pytest.raises(ValueError, match="must be"):
        read_video(clip("b-frames.mp4"), **given)


def test_a_rate_of_almost_nothing_is_the_first_frame(clip: Make) -> None:
    assert read_video(clip("b-frames.mp4"), fps=Fraction(1, 10**299)).indices.tolist() == [0]
