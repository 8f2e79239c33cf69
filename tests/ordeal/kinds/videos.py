"""Videos: files of many containers and codecs, damaged, and options that fit none of them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from ordeal.mutate import mutated
from ordeal.trials import Trial, demand, documented
from vitcop_video import VideoError, open_video, read_video
from vitcop_video.clips import WRITES_ROTATION, ClipSettings, damage, write_clip
from vitcop_video.soak import GOOD

TIME_LIMIT = 5.0
"""Seconds that reading may take: half of what a trial may."""

FILES = GOOD | {
    "plain.ts": ClipSettings(frames=30),
    "fragments.mp4": ClipSettings(frames=30, container={"movflags": "frag_keyframe+empty_moov"}),
    "first.mp4": ClipSettings(frames=30, options={"bf": "2"}, container={"movflags": "faststart"}),
    "motion.mov": ClipSettings(frames=20, codec="mjpeg", pixel_format="yuvj420p"),
    "mpeg4.avi": ClipSettings(frames=30, codec="mpeg4"),
    "mpeg2.mpg": ClipSettings(frames=30, codec="mpeg2video"),
    "old.flv": ClipSettings(frames=30, codec="flv"),
    "small.gif": ClipSettings(frames=12, width=60, height=40, codec="gif", pixel_format="rgb8"),
    "ten-bit.mkv": ClipSettings(frames=20, pixel_format="yuv420p10le"),
}
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".ts", ".mov", ".gif", ".flv", ".wmv", ".ogg", "", ".txt", ".m3u8")

ODD: dict[str, tuple[Any, ...]] = {
    "frames": (1, 2, 30, 31, 0, -1, 10**9, 10**400, 2.0, True, "8", float("nan"), [1]),
    "fps": (1, 0.5, 30, 1e-300, 0, -1, float("inf"), float("nan"), 10**400, "2", np.float32(3)),
    "indices": (
        [0],
        [0, 0, 5],
        [29, 0],
        [30],
        [-1],
        [],
        [10**30],
        [0.5],
        "0",
        3,
        range(0, 20, 7),
        np.arange(3),
        [True],
    ),
    "keyframes": (True, False, 1, None, "yes"),
    "start": (0, 0.1, 0.5, 10**9, -1, float("nan"), float("inf"), 10**400, "0"),
    "end": (0.5, 1, 0, -1, 10**9, float("nan"), 1e-320, "1"),
    "backend": ("auto", "pyav", "none", "", None, 3),
}


def prepare(folder: Path) -> Trial:
    """Encodes good files; a trial damages one, or reads it with odd options."""
    made = folder / "good"
    made.mkdir()
    files = {name: clip for name, clip in FILES.items() if WRITES_ROTATION or not clip.rotation}
    good = [(write_clip(made / name, clip).read_bytes(), Path(name).suffix) for name, clip in files.items()]

    def trial(random: Random) -> None:
        data, suffix = random.choice(good)
        options: dict[str, Any] = {"frames": 4}
        if is_whole := random.random() < 0.15:
            options = {name: random.choice(ODD[name]) for name in random.sample([*ODD], random.choice((1, 1, 2, 3)))}
        else:
            other, _ = random.choice(good)
            data = mutated(data, random, other) if random.random() < 0.7 else damage(data, random.randrange(10**9))
        path = folder / f"case{suffix if random.random() < 0.8 else random.choice(SUFFIXES)}"
        path.write_bytes(data)
        try:
            _read(path, options, is_whole)
        finally:
            path.unlink()

    return trial


def _read(path: Path, options: dict[str, Any], is_whole: bool) -> None:
    wrong = (ValueError, TypeError) if is_whole else (ValueError,)
    with documented(*wrong):
        video = read_video(path, time_limit=TIME_LIMIT, **options)
    frames, info = len(video.frames), video.info
    demand(video.frames.shape == (frames, info.height, info.width, 3), f"frames of {video.frames.shape}")
    demand(video.frames.dtype == np.uint8 and frames > 0, f"{frames} frames of {video.frames.dtype}")
    demand(len(video.seconds) == len(video.indices) == frames, "times or numbers that are not the frames'")
    demand(bool(np.isfinite(video.seconds).all() and (video.seconds >= 0).all()), f"seconds {video.seconds}")
    demand(bool((np.diff(info.seconds) > 0).all()) and info.frames == len(info.seconds), "times that do not ascend")
    demand(video.indices.min() >= 0 and video.indices.max() < info.frames, f"frames {video.indices} of {info.frames}")
    if is_whole and frames > 2:  # another look at the same file shows the same
        with documented(VideoError):
            again = open_video(path, time_limit=TIME_LIMIT).frames(video.indices[::2].tolist())
        demand(bool(np.array_equal(again.frames, video.frames[::2])), "other pixels at a second look")
