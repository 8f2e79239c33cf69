"""Frames by torchcodec, in this process. It reports the time of each frame, which is compared with the index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from vitcop_video.readers.base import Backend, BackendError, Deadline, refusal_of_rest
from vitcop_video.readers.index import Index
from vitcop_video.readers.memory import plain_threads

CONTAINERS = ("mov", "matroska", "avi")
CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")


AT_A_TIME = 8
"""Frames that are decoded between two looks at the clock."""


@cache
def missing() -> str | None:
    """Return why torchcodec cannot run here; None where it can."""
    if find_spec("torchcodec") is None:
        return "torchcodec is not installed"
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception as error:  # built for another torch, or without a system's FFmpeg: it fails in ways of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        reason = reason.partition(" Likely causes")[0]  # a list of them follows
        return f"torchcodec cannot be imported: {type(error).__name__}: {reason}"
    return None


def refusal(index: Index) -> str | None:
    """Return why a file is not for torchcodec."""
    return refusal_of_rest(index, CONTAINERS, CODECS)


def decode(index: Index, frames: Sequence[int], deadline: Deadline) -> NDArray[np.uint8]:
    """Return upright frames, [F, H, W, 3] uint8, of ascending frame numbers without repeats.

    Raises:
        VideoError: the time is over.
        BackendError: torchcodec fails, or its frames are not those of the index.
    """
    from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined]

    width, height = index.size
    pixels = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    ticks = index.packets[index.order[np.asarray(frames)]]
    expected = ticks * (index.time_base.numerator / index.time_base.denominator)
    threads = plain_threads(index, pixels.nbytes + pixels[:AT_A_TIME].nbytes)
    if not threads:
        raise BackendError("its frames are such that memory has to be limited")
    try:
        # All cores: its default of one is slower than its competitors.
        decoder = VideoDecoder(str(index.path), dimension_order="NHWC", num_ffmpeg_threads=threads)
    except Exception as error:  # RuntimeError, ValueError by what is wrong with a file
        raise _fault(error) from error
    for start in range(0, len(frames), AT_A_TIME):
        deadline.check(index.path)
        part = slice(start, start + AT_A_TIME)
        try:
            batch = decoder.get_frames_at(indices=list(frames[part]))
        except Exception as error:  # RuntimeError, ValueError, IndexError by what is wrong with a file
            raise _fault(error) from error
        found = batch.data.numpy()
        if found.shape != pixels[part].shape:
            raise BackendError("gives frames of another size")
        if not np.allclose(batch.pts_seconds.numpy(), expected[part], rtol=0, atol=1e-5):
            raise BackendError("gives frames of other times")
        pixels[part] = found
    return pixels


def _fault(error: Exception) -> BackendError:
    return BackendError(f"{str(error).splitlines()[0] if str(error) else error!r}")


BACKEND = Backend("torchcodec", missing, refusal, decode)
