"""Demo clips as video files, with questions about them: ``python -m vitcop_video.demo.files --out FOLDER``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import av
from tqdm import tqdm

from vitcop_core.files import write_whole
from vitcop_video.clips import writing
from vitcop_video.demo.events import render_clip, sample_clip
from vitcop_video.demo.questions import held_out

FRAMES_PER_SECOND = 2


def write_demo_clip(path: Path, seed: int, size: int = 336, *, overwrite: bool = True) -> Path:
    """Write the clip of ``seed`` as H.264 at two frames a second; the container follows from the name.

    Args:
        path: Where to.
        seed: As of :func:`vitcop_video.demo.events.sample_clip`.
        size: Pixels each way, even.
        overwrite: Whether a file that is there is replaced.

    Returns:
        The path.

    Raises:
        ValueError: ``size`` is odd or not positive, or the name ends in no container's ending.
        OSError: The file cannot be written, or is there and must not be replaced.
    """
    if size < 2 or size % 2:
        raise ValueError(f"size must be positive and even, got {size}")
    with writing(path, overwrite=overwrite) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "12"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in render_clip(sample_clip(seed), size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_questions(folder: Path, clips: int) -> Path:
    """Write held-out clips, and a question about each as ``vitcop compare --questions`` reads them.

    Args:
        folder: Where to; it is made where it is missing.
        clips: How many.

    Returns:
        The file with the questions.

    Raises:
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "questions.jsonl"
    with write_whole(path) as lines:
        for asked in tqdm(held_out(clips), desc="clips", file=sys.stderr, disable=None):
            video = write_demo_clip(folder / f"{asked.seed}.mp4", asked.seed)
            line = {"image": str(video), "question": asked.text, "answer": asked.answer, "kind": asked.kind}
            lines.write(json.dumps(line).encode() + b"\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m vitcop_video.demo.files", description=__doc__)
    parser.add_argument("--clips", type=int, default=1000, help="how many of the held-out clips")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args(arguments)
    if args.clips < 1:
        parser.error(f"--clips must be at least 1, got {args.clips}")
    print(write_questions(args.out, args.clips))


if __name__ == "__main__":
    main()
