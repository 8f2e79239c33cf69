"""What the `vitcop` command needs of this package: `vitcop_llava.tools.media.video_support` finds this module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitcop_llava.tools.media.video_support import Clip, Sampling
from vitcop_video.readers.base import VideoError
from vitcop_video.readers.choice import backend_status as readers
from vitcop_video.video import open_video, read_video

if TYPE_CHECKING:
    from vitcop_llava.tools.demo.questions import Question
    from vitcop_video.processing import ClipProcessor

__all__ = ["demo_folder", "processor", "read_clip", "readers", "write_demo"]

demo_folder = Path(__file__).parent / "demo" / "weights"


def read_clip(path: Path, sampling: Sampling) -> Clip:
    """Read frames of a file.

    Raises:
        ValueError: it cannot be read, or does not have such frames; the message names it.
    """
    try:
        if sampling.at_most and sampling.frames is not None:
            sampling = replace(sampling, frames=min(sampling.frames, _frames_within(path, sampling)), at_most=False)
        video = read_video(
            path,
            sampling.frames,
            fps=sampling.fps,
            indices=sampling.indices,
            keyframes=sampling.keyframes,
            start=sampling.start,
            end=sampling.end,
            backend=sampling.backend,
            time_limit=sampling.time_limit,
        )
    except VideoError:  # it names the file
        raise
    except OSError as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    info = video.info
    return Clip(path, video.frames, video.seconds, video.indices, info.frames, info.backend, info.fallback)


def _frames_within(path: Path, sampling: Sampling) -> int:
    """Return how many frames a file has in the window; one at least, so that reading them says what is wrong."""
    seconds = open_video(path, sampling.backend, time_limit=sampling.time_limit).info.seconds
    inside = (seconds >= (sampling.start or 0.0)) & (seconds < (np.inf if sampling.end is None else sampling.end))
    return max(1, int(np.count_nonzero(inside)))


def processor(name: str) -> ClipProcessor:
    """Return the processor of a checkpoint for videos."""
    from vitcop_video.processing import ClipProcessor

    return ClipProcessor.from_pretrained(name)


def write_demo(seed: int, path: Path, *, overwrite: bool = True) -> list[Question]:
    """Draw a clip that the demo model knows into a file, whole or not at all; return the questions about it.

    Raises:
        FileExistsError: the file is there, and ``overwrite`` is false.
        OSError: it cannot be written.
        ValueError: its name ends in no container's ending.
    """
    from vitcop_video.demo.events import sample_clip
    from vitcop_video.demo.files import write_demo_clip
    from vitcop_video.demo.questions import listing, questions_about

    clip = sample_clip(seed)
    write_demo_clip(path, seed, overwrite=overwrite)
    return [*questions_about(clip), listing(clip)]
