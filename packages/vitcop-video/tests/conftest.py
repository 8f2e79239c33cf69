"""Clips of every kind, encoded once."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vitcop_video import backend_status
from vitcop_video.clips import Clip, write_clip

REALTIME = {"deadline": "realtime", "cpu-used": "8"}
VARIABLE = [int(tick) for tick in np.cumsum(np.random.default_rng(0).integers(1, 9, 60)) * 100]
CLIPS = {
    "b-frames.mp4": Clip(options={"bf": "3", "b_strategy": "0"}),
    "header-first.mp4": Clip(options={"bf": "3"}, container={"movflags": "faststart"}),
    "open-gop.mp4": Clip(options={"bf": "3", "b_strategy": "0", "x264-params": "open-gop=1:keyint=12:min-keyint=12"}),
    "fragmented.mp4": Clip(options={"bf": "3"}, container={"movflags": "frag_keyframe+empty_moov"}),
    "interlaced.mp4": Clip(height=96, options={"bf": "2", "x264-params": "tff=1:interlaced=1"}),
    "long-gop.mp4": Clip(frames=120, gop=100, options={"bf": "3", "sc_threshold": "0"}),
    "ten-bit.mp4": Clip(pixel_format="yuv420p10le"),
    "variable.mp4": Clip(ticks=VARIABLE, time_base=Fraction(1, 6000)),
    "variable.mkv": Clip(ticks=VARIABLE, time_base=Fraction(1, 6000)),
    "late.mp4": Clip(ticks=range(30, 90), time_base=Fraction(1, 30)),
    "odd.mp4": Clip(width=161, height=91, pixel_format="yuv444p"),
    "odd.webm": Clip(width=161, height=91, codec="libvpx-vp9", options=REALTIME),
    "vp9.webm": Clip(codec="libvpx-vp9", options=REALTIME),
    "av1.mp4": Clip(frames=12, codec="libsvtav1", options={"preset": "12"}),
    "hevc.mp4": Clip(
        codec="libx265", options={"x265-params": "log-level=none:open-gop=1:b-adapt=0:bframes=3:scenecut=0"}
    ),
    "motion.avi": Clip(codec="mjpeg", pixel_format="yuvj420p"),
    "motion.mov": Clip(codec="mjpeg", pixel_format="yuvj420p"),
    "mpeg4.avi": Clip(codec="mpeg4"),
    "stream.ts": Clip(options={"bf": "3"}),
    "turned-90.mp4": Clip(rotation=90),
    "turned-180.mp4": Clip(rotation=180),
    "turned-270.mp4": Clip(rotation=270),
    "one.mp4": Clip(frames=1),
}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skip(reason=reason) if reason else ())
    for name, reason in backend_status().items()
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS)
    if "clip_name" in metafunc.fixturenames:
        metafunc.parametrize("clip_name", [*CLIPS, "cut.mp4"])


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a clip by name."""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            if name == "cut.mp4":
                cut(make("b-frames.mp4"), path)
            else:
                write_clip(path, CLIPS[name])
        return path

    return make


def cut(source: Path, path: Path) -> None:
    """Leaves out the first half second without encoding again: an edit list hides the frames before it."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as part:
        stream = whole.streams.video[0]
        copy = part.add_stream_from_template(stream)
        shift = round(0.5 / (stream.time_base or Fraction(1)))
        for packet in whole.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            if packet.dts < round(0.3 / (stream.time_base or Fraction(1))):
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            part.mux(packet)


@pytest.fixture(scope="session")
def decoded(clip: Callable[[str], Path]) -> Callable[[str], tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    """Every frame of a clip, upright, and when it appears: by PyAV, from the first to the last, with nothing sought."""
    known: dict[str, tuple[NDArray[np.uint8], NDArray[np.float64]]] = {}

    def decode(name: str) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        if name not in known:
            pixels, times = [], []
            with av.open(str(clip(name))) as container:
                for frame in container.decode(video=0):
                    image = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
                    pixels.append(np.rot90(image, frame.rotation // 90))
                    times.append((frame.pts or 0) * (frame.time_base or Fraction(1)))
            known[name] = np.stack(pixels).astype(np.uint8), np.array([float(time - times[0]) for time in times])
        return known[name]

    return decode
