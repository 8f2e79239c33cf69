"""Reading frames through vitcop-video beside its decoders used directly: ``python -m vitcop_video.bench``.

A clip of 60 s, 1280 x 720 at 30 frames a second, H.264 with B-frames and the encoder's own distance of key frames, is
made first. Every variant reads the same frames from the file to an array, opening it anew; the variants take turns, so
that a noisy machine hits them alike; ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from vitcop_core.files import write_json
from vitcop_video.clips import ClipSettings, write_clip
from vitcop_video.machine import command_line, environment
from vitcop_video.readers.choice import backend_status
from vitcop_video.sampling import uniform
from vitcop_video.video import read_video

CLIP = ClipSettings(frames=1800, width=1280, height=720, gop=None, options={"preset": "veryfast", "b_strategy": "1"})

Read = Callable[[str, list[int]], NDArray[np.uint8]]


def with_decord(path: str, frames: list[int]) -> NDArray[np.uint8]:
    """Read with decord, a batch at a time as its documentation does."""
    import decord  # type: ignore[import-untyped]

    pixels: NDArray[np.uint8] = decord.VideoReader(path).get_batch(frames).asnumpy()
    return pixels


def with_torchcodec(path: str, frames: list[int], **settings: Any) -> NDArray[np.uint8]:
    """Read with torchcodec and settings of its decoder."""
    from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined]

    decoder = VideoDecoder(path, dimension_order="NHWC", **settings)
    pixels: NDArray[np.uint8] = decoder.get_frames_at(indices=frames).data.numpy()
    return pixels


def with_pyav_seeking(path: str, frames: list[int]) -> NDArray[np.uint8]:
    """Read with PyAV, a seek for each frame; right for a constant rate only."""
    pixels = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number in frames:
            ticks = round(number / (stream.average_rate or 1) / (stream.time_base or 1))
            container.seek(ticks, stream=stream)
            frame = next(each for each in container.decode(stream) if each.pts is not None and each.pts >= ticks)
            pixels.append(frame.to_ndarray(format="rgb24"))
    return np.stack(pixels)


def with_pyav_sequential(path: str, frames: list[int]) -> NDArray[np.uint8]:
    """Read with PyAV from the first frame to the last that is wanted."""
    wanted, pixels = set(frames), []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pixels.append(frame.to_ndarray(format="rgb24"))
            if number == frames[-1]:
                break
    return np.stack(pixels)


def with_ours(path: str, frames: list[int], backend: str = "auto") -> NDArray[np.uint8]:
    """Read with `read_video`, which finds the same frames by their number."""
    return read_video(path, frames=len(frames), backend=backend, time_limit=None).frames


def variants() -> tuple[dict[str, Read], dict[str, Read]]:
    """Return what is here: readers used directly, and ours."""
    here = [name for name, reason in backend_status().items() if reason is None]
    direct: dict[str, Read] = {"PyAV, seeking": with_pyav_seeking, "PyAV, sequential": with_pyav_sequential}
    if "decord" in here:
        direct["decord"] = with_decord
    if "torchcodec" in here:
        direct["torchcodec"] = with_torchcodec
        direct["torchcodec, all cores"] = partial(with_torchcodec, num_ffmpeg_threads=0)
    ours: dict[str, Read] = {"vitcop-video, auto": with_ours}
    return direct, ours | {f"vitcop-video, {name}": partial(with_ours, backend=name) for name in here}


@dataclass(frozen=True)
class ReaderTimes:
    """One way of reading: seconds of every round, their median, and the median over that of the fastest direct one."""

    name: str
    is_direct: bool
    frames: int
    seconds: list[float]
    median: float
    over_fastest_direct: float


def measure(path: Path, frames: int, rounds: int) -> list[ReaderTimes]:
    """Time every variant in turn, ``rounds`` times after one to warm up, in which the pixels are compared."""
    direct, ours = variants()
    runs, numbers = direct | ours, uniform(range(CLIP.frames), frames)
    reference = with_pyav_sequential(str(path), numbers)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in tqdm(range(rounds + 1), desc=f"rounds of {frames} frames", file=sys.stderr):
        for name, read in runs.items():
            begin = time.perf_counter()
            pixels = read(str(path), numbers)
            elapsed = time.perf_counter() - begin
            if turn:
                times[name].append(elapsed)
            elif not np.array_equal(pixels, reference):
                raise RuntimeError(f"{name} reads other pixels")
            del pixels
    fastest = min(statistics.median(times[name]) for name in direct)
    return [
        ReaderTimes(
            name, name in direct, frames, seconds, statistics.median(seconds), statistics.median(seconds) / fastest
        )
        for name, seconds in times.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m vitcop_video.bench", description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clip", type=Path, help="where the clip is kept for another run; made where it is missing")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args(arguments)
    command = command_line("vitcop_video.bench", arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = args.clip or Path(folder) / "clip.mp4"
        if not path.exists():
            print("encoding the clip", file=sys.stderr)
            write_clip(path, CLIP)
        size = path.stat().st_size
        rows = [row for frames in args.frames for row in measure(path, frames, args.rounds)]
    if args.out:
        clip = {"bytes": size, "frames": CLIP.frames, "width": CLIP.width, "height": CLIP.height, "rate": CLIP.rate}
        stored = {"command": command, "environment": environment(), "clip": clip, "rounds": args.rounds}
        stored["rows"] = [asdict(row) for row in rows]
        write_json(args.out, stored)
    shown = Table("frames", "reader", "median", "over the fastest direct one")
    for row in rows:
        shown.add_row(str(row.frames), row.name, f"{row.median:.3f} s", f"{row.over_fastest_direct:.3f}")
    Console(width=100).print(shown)


if __name__ == "__main__":
    main()
