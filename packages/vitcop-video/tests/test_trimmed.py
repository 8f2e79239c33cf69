"""Clips whose beginning was cut off without encoding again: an edit list hides what leads up to the first frame."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vitcop_video import open_video
from vitcop_video.clips import WRITES_ROTATION, ClipSettings, write_clip

LONG = {"frames": 80, "rate": 25, "gop": 250}
HEVC = {"x265-params": "log-level=none:open-gop=1:b-adapt=0:bframes=3:scenecut=0"}
SOURCES = {
    "one key frame.mp4": ClipSettings(**LONG, options={"bf": "0"}),  # type: ignore[arg-type]
    "b-frames.mp4": ClipSettings(**LONG, options={"bf": "3", "b_strategy": "0"}),  # type: ignore[arg-type]
    "quicktime.mov": ClipSettings(**LONG, options={"bf": "3"}),  # type: ignore[arg-type]
    "phone.3gp": ClipSettings(**LONG),  # type: ignore[arg-type]
    "many key frames.mp4": ClipSettings(frames=80, rate=25, gop=12),
    "two key frames.mp4": ClipSettings(frames=80, rate=25, gop=40, options={"sc_threshold": "0", "bf": "2"}),
    "hevc.mp4": ClipSettings(**LONG, codec="libx265", options=HEVC),  # type: ignore[arg-type]
    "turned.mp4": ClipSettings(**LONG, rotation=90),  # type: ignore[arg-type]
    "wide pixels.mp4": ClipSettings(**LONG, pixel_aspect=Fraction(4, 3)),  # type: ignore[arg-type]
    "mpeg4.mp4": ClipSettings(**LONG, codec="mpeg4"),  # type: ignore[arg-type]
}


def trim(source: Path, path: Path, seconds: float) -> None:
    """Copies packets with earlier times; those below zero are hidden."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as part:
        stream = whole.streams.video[0]
        copy = part.add_stream_from_template(stream)
        shift = round(seconds / (stream.time_base or 1))
        for packet in whole.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                part.mux(packet)


@pytest.mark.parametrize("seconds", [1, 2.4])
@pytest.mark.parametrize("name", SOURCES)
def test_a_trimmed_clip_has_the_frames_that_are_shown(tmp_path: Path, name: str, seconds: float) -> None:
    if SOURCES[name].rotation and not WRITES_ROTATION:
        pytest.skip("this PyAV writes no rotation")
    source = write_clip(tmp_path / name, SOURCES[name])
    path = tmp_path / f"cut-{name}"
    trim(source, path, seconds)
    video = open_video(path)
    shown, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(
                format="rgb24", width=round(frame.width * video.info.pixel_aspect), interpolation="BICUBIC"
            )
            shown.append(np.rot90(image, SOURCES[name].rotation // 90))
            times.append(float((frame.pts or 0) * (frame.time_base or 1)))
    assert video.info.frames == len(shown) == round(80 - 25 * seconds)
    read = video.frames(range(len(shown)))
    assert np.array_equal(read.frames, np.stack(shown))
    np.testing.assert_allclose(read.seconds, np.array(times) - times[0], rtol=0, atol=1e-9)
    assert np.array_equal(video.frames([len(shown) - 1, 3, 0]).frames, read.frames[[-1, 3, 0]])
