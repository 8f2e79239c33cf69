"""The public function: which frames it reads for which arguments, and what it says of wrong ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitcop_video import open_video, read_video, video
from vitcop_video.clips import ClipSettings as Settings
from vitcop_video.clips import write_clip

Clip = Callable[[str], Path]


@pytest.mark.parametrize(
    ("arguments", "indices"),
    [
        pytest.param({}, [0, 7, 15, 22, 30, 37, 45, 52], id="default"),
        pytest.param({"frames": 3}, [0, 20, 40], id="frames"),
        pytest.param({"fps": 2}, [0, 15, 30, 45], id="fps"),
        pytest.param({"indices": [59, 0, 59]}, [59, 0, 59], id="indices"),
        pytest.param({"frames": 2, "start": 1.0}, [30, 45], id="start"),
        pytest.param({"frames": 2, "start": 0.5, "end": 1.5}, [15, 30], id="window"),
        pytest.param({"fps": 10, "end": 0.5}, [0, 3, 6, 9, 12], id="fps in a window"),
        pytest.param({"frames": 60, "end": 2}, list(range(60)), id="until the end"),
    ],
)
def test_read_video_reads(clip: Clip, arguments: dict[str, Any], indices: list[int]) -> None:
    read = read_video(clip("b-frames.mp4"), **arguments)
    assert read.indices.tolist() == indices
    assert read.frames.shape == (len(indices), 90, 160, 3)
    np.testing.assert_allclose(read.seconds, np.array(indices) / 30, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["six.mp4", "six.gif", "six.mkv", "six.ts"])
def test_a_short_clip_is_read_whole_by_default(tmp_path: Path, name: str) -> None:
    kind = {"codec": "gif", "pixel_format": "rgb8"} if name.endswith("gif") else {}
    path = write_clip(tmp_path / name, Settings(frames=6, **kind))  # type: ignore[arg-type]
    assert read_video(path).indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert read_video(path, start=0.1).indices.tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="frames must be at most 6, which is how many there are, got 8"):
        read_video(path, frames=8)


def test_a_short_window_is_read_whole_by_default(clip: Clip) -> None:
    assert read_video(clip("b-frames.mp4"), start=1.0, end=1.1).indices.tolist() == [30, 31, 32]


def test_read_video_reads_key_frames(clip: Clip) -> None:
    assert read_video(clip("long-gop.mp4"), keyframes=True).indices.tolist() == [0, 100]
    assert read_video(clip("long-gop.mp4"), keyframes=True, start=1).indices.tolist() == [100]


def test_read_video_takes_text_and_paths(clip: Clip) -> None:
    path = clip("b-frames.mp4")
    assert np.array_equal(read_video(str(path)).frames, read_video(path).frames)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        pytest.param({"frames": 61}, ValueError, "frames must be at most 60", id="more than there are"),
        pytest.param({"fps": 60}, ValueError, "fps must be at most 30", id="faster than it is"),
        pytest.param({"indices": [60]}, ValueError, r"indices\[0\] must be an integer from 0 to 59", id="index"),
        pytest.param(
            {"frames": 2, "fps": 1}, ValueError, "must be given one at a time, got frames and fps", id="two ways"
        ),
        pytest.param({"indices": [0], "start": 1}, ValueError, "must not be given with", id="indices in a window"),
        pytest.param({"start": 2.0}, ValueError, r"start must be in \[0, 2.000\)", id="start past the end"),
        pytest.param({"start": -0.1}, ValueError, r"start must be in \[0, 2.000\)", id="start before the beginning"),
        pytest.param({"end": 2.2}, ValueError, r"end must be in \(0, 2.000\]", id="end past the end"),
        pytest.param({"end": 0}, ValueError, "end must be in", id="end at the beginning"),
        pytest.param({"start": 1, "end": 1}, ValueError, "end must be later than start", id="nothing between"),
        pytest.param({"start": 0.01, "end": 0.02}, ValueError, "in which a frame appears", id="between two frames"),
        pytest.param({"start": float("nan")}, ValueError, "start must be a finite number", id="nan"),
        pytest.param({"end": float("inf")}, ValueError, "end must be a finite number", id="infinity"),
        pytest.param({"start": "1"}, TypeError, "start must be a number of seconds", id="text"),
        pytest.param({"keyframes": 1}, TypeError, "keyframes must be True or False", id="flag"),
        pytest.param({"backend": "vlc"}, ValueError, "backend must be one of 'auto', 'pyav'", id="backend"),
    ],
)
def test_read_video_refuses(clip: Clip, arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_video(clip("b-frames.mp4"), **arguments)


def test_read_video_refuses_more_than_fits(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_BYTES", 3 * 160 * 90 * 3)
    with pytest.raises(ValueError, match="at most 3 frames of this size, which is 0 MiB, got 4: ask for fewer"):
        read_video(clip("b-frames.mp4"), frames=4)


def test_a_video_file_is_read_by_threads(clip: Clip) -> None:
    opened = open_video(clip("b-frames.mp4"))
    alone = opened.frames([0, 29, 59]).frames
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda _: opened.frames([0, 29, 59]).frames, range(16)):
            assert np.array_equal(read, alone)
