"""Opens, reads and closes good and bad files over and over: ``python -m vitcop_video.soak --cycles 10000``.

Counts what must not grow: resident memory, open handles, threads and child processes, once warmed up.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from vitcop_core.files import write_bytes, write_text
from vitcop_video.clips import WRITES_ROTATION, ClipSettings, damage, write_clip
from vitcop_video.machine import command_line, environment
from vitcop_video.video import read_video

GOOD = {
    "plain.mp4": ClipSettings(frames=30, options={"bf": "3"}),
    "variable.mkv": ClipSettings(frames=30, ticks=[4 * n + n % 3 for n in range(30)], time_base=Fraction(1, 120)),
    "turned.mp4": ClipSettings(frames=30, rotation=90),
    "vp9.webm": ClipSettings(frames=30, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "motion.avi": ClipSettings(frames=30, codec="mjpeg", pixel_format="yuvj420p"),
    "one.mp4": ClipSettings(frames=1),
}
DAMAGED_COPIES = 8
"""Of each good file."""


@dataclass(frozen=True)
class Reading:
    """What a process holds: bytes of resident memory, and numbers of open handles, threads and children."""

    resident: int
    handles: int
    threads: int
    python_threads: int
    children: int


@dataclass(frozen=True)
class SoakResult:
    """One run.

    Attributes:
        cycles: of opening, reading and closing one file each.
        files: how many files took turns.
        outcomes: how often each way of ending occurred: "read", or the name of an error.
        before: once every file was read twice.
        after: at the end.
        samples: resident bytes at ten moments between.
    """

    cycles: int
    backend: str
    files: int
    outcomes: dict[str, int]
    before: Reading
    after: Reading
    samples: list[int]


def make_folder(folder: Path) -> list[Path]:
    """Make good files, damaged copies of them, and things that are no videos; return what is to be read."""
    paths = [write_clip(folder / name, clip) for name, clip in GOOD.items() if WRITES_ROTATION or not clip.rotation]
    for good in list(paths):
        for seed in range(DAMAGED_COPIES):
            path = folder / f"damaged-{seed}-{good.name}"
            write_bytes(path, damage(good.read_bytes(), seed))
            paths.append(path)
    for name, content in {"empty.mp4": b"", "text.mp4": b"Not a video.\n" * 99}.items():
        write_bytes(folder / name, content)
        paths.append(folder / name)
    return [*paths, folder, folder / "missing.mp4"]


def soak(paths: list[Path], cycles: int, backend: str = "auto") -> SoakResult:
    """Read four frames of one path after another, ``cycles`` times in all."""
    for path in 2 * paths:
        _read(path, backend)
    tqdm.monitor_interval = 0  # its thread would be counted
    before, outcomes, samples = reading(), Counter[str](), []
    for cycle in tqdm(range(cycles), desc="cycles", file=sys.stderr, mininterval=5):
        outcomes[_read(paths[cycle % len(paths)], backend)] += 1
        if (cycle + 1) % max(1, cycles // 10) == 0:
            samples.append(reading().resident)
    return SoakResult(cycles, backend, len(paths), dict(outcomes.most_common()), before, reading(), samples)


def _read(path: Path, backend: str) -> str:
    try:
        read_video(path, indices=[0, 7, 20, 29] if path.name != "one.mp4" else [0], backend=backend)
    except (ValueError, OSError) as error:
        return type(error).__name__
    return "read"


def reading() -> Reading:
    """Return what this process holds now. Needs Linux's /proc."""
    gc.collect()
    own = Path("/proc/self")
    pages = int((own / "statm").read_text().split()[1])
    tasks = [path.name for path in (own / "task").iterdir()]
    children = sum(len((own / "task" / task / "children").read_text().split()) for task in tasks)
    handles = len(list((own / "fd").iterdir())) - 1  # one of them is this look
    return Reading(pages * os.sysconf("SC_PAGE_SIZE"), handles, len(tasks), threading.active_count(), children)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m vitcop_video.soak", description=__doc__)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--backend", default="auto", help="auto, pyav, decord or torchcodec")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args(arguments)
    command = command_line("vitcop_video.soak", arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(make_folder(Path(folder)), args.cycles, args.backend)
    text = json.dumps({"command": command, "environment": environment()} | asdict(result), indent=1) + "\n"
    if args.out:
        write_text(args.out, text)
    print(text, end="")


if __name__ == "__main__":
    main()
