"""Every backend gives the frames that decoding the whole clip gives, with the same times, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vitcop_video import open_video

Decoded = Callable[[str], tuple[NDArray[np.uint8], NDArray[np.float64]]]

READ_BY_PYAV_INSTEAD = {
    "decord": {
        "open-gop.mp4": "miscount",
        "hevc.mp4": "miscount",
        "av1.mp4": "libdav1d is not read",
        "interlaced.mp4": "interlaced",
        "fragmented.mp4": "fragmented",
        "odd.webm": "other colors",
        "ten-bit.mp4": "other colors",
        "stream.ts": "mpegts",
        "cut.mp4": "edit list",
    },
    "torchcodec": {
        "av1.mp4": "libdav1d is not read",
        "interlaced.mp4": "interlaced",
        "fragmented.mp4": "fragmented",
        "odd.webm": "other colors",
        "ten-bit.mp4": "other colors",
        "stream.ts": "mpegts",
        "cut.mp4": "edit list",
    },
}


def test_backend_gives_the_clips_own_frames(
    clip: Callable[[str], Path], decoded: Decoded, clip_name: str, backend: str
) -> None:
    pixels, seconds = decoded(clip_name)
    count = len(pixels)
    video = open_video(clip(clip_name), backend)
    assert video.info.frames == count
    assert (video.info.height, video.info.width) == pixels.shape[1:3]
    np.testing.assert_allclose(video.info.seconds, seconds, rtol=0, atol=1e-9)
    random = np.random.default_rng(len(clip_name))
    for chosen in (range(count), random.permutation(count)[:7].tolist(), [count - 1]):
        read = video.frames(chosen)
        assert read.frames.dtype == np.uint8
        assert np.array_equal(read.frames, pixels[list(chosen)])
        np.testing.assert_allclose(read.seconds, seconds[list(chosen)], rtol=0, atol=1e-9)
        assert read.indices.tolist() == list(chosen)
    expected = READ_BY_PYAV_INSTEAD.get(backend, {}).get(clip_name)
    assert read.info.backend == ("pyav" if expected else backend)
    assert expected is None or expected in (read.info.fallback or "")


def test_key_frames_are_decoded_alone(clip: Callable[[str], Path]) -> None:
    assert open_video(clip("long-gop.mp4")).info.key_frames.tolist() == [0, 100]
    assert open_video(clip("motion.avi")).info.key_frames.tolist() == list(range(60))


def test_info_of_a_clip_with_one_frame(clip: Callable[[str], Path]) -> None:
    info = open_video(clip("one.mp4")).info
    assert (info.frames, info.fps, info.has_variable_rate) == (1, None, False)
    assert info.duration == pytest.approx(1 / 30)


@pytest.mark.parametrize(("name", "varies"), [("variable.mp4", True), ("variable.mkv", True), ("vp9.webm", False)])
def test_info_says_whether_the_rate_varies(clip: Callable[[str], Path], name: str, varies: bool) -> None:
    assert open_video(clip(name)).info.has_variable_rate is varies


def test_turned_clip_has_its_upright_size(clip: Callable[[str], Path]) -> None:
    info = open_video(clip("turned-90.mp4")).info
    assert (info.width, info.height) == (90, 160)


def test_time_begins_with_the_first_frame(clip: Callable[[str], Path]) -> None:
    info = open_video(clip("late.mp4")).info
    assert info.seconds[0] == 0
    assert info.duration == pytest.approx(2)
