"""A file on disk as frames with their times: `read_video`, and `open_video` for more than one look at it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vitcop_core.checks import check_flag
from vitcop_core.shown import shown
from vitcop_video import sampling
from vitcop_video.readers.base import MAX_BYTES, TIME_LIMIT, Backend, Deadline
from vitcop_video.readers.choice import choose, decode
from vitcop_video.readers.index import Index
from vitcop_video.times import check_seconds, check_time_limit, ticks_at

DEFAULT_FRAMES = 8
"""What LLaVA-NeXT-Video's documentation samples; all of them where a clip or its window has fewer."""


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a file holds.

    Attributes:
        path: absolute.
        frames: how many there are.
        width, height: pixels of a frame, upright, once its pixels are square.
        duration: seconds from the first frame's appearance until the last one leaves.
        fps: frames per second on average; None for a clip of one frame.
        has_variable_rate: whether frames stay for different times.
        codec, container: FFmpeg's names.
        seconds: [frames] float64, strictly ascending from 0: when each frame appears.
        key_frames: [K] int64, ascending: frames that are decoded without others.
        backend: the decoder that was asked for or, once frames were read, that gave them.
        fallback: why it was not the one asked for, or None.
        pixel_aspect: width of a stored pixel over its height, before the frame is turned upright. Where it is not 1,
            frames are stored ``height`` high (``width``, once turned on their side) and scaled in width.
    """

    path: str
    frames: int
    width: int
    height: int
    duration: float
    fps: float | None
    has_variable_rate: bool
    codec: str
    container: str
    seconds: NDArray[np.float64]
    key_frames: NDArray[np.int64]
    backend: str
    fallback: str | None = None
    pixel_aspect: Fraction = Fraction(1)


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a clip, F of them.

    Attributes:
        frames: [F, H, W, 3] uint8, RGB, upright, of square pixels.
        seconds: [F] float64: when each appears, counted from the clip's first frame.
        indices: [F] int64: which frame of the clip each is.
        info: what the file holds.
    """

    frames: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    indices: NDArray[np.int64]
    info: VideoInfo


class VideoFile:
    """A video whose packets were read and whose frames can be asked for, as often as one likes, from any thread.

    It holds no open file: each call of `frames` opens one and closes it.

    Attributes:
        info: what the file holds.
    """

    def __init__(self, index: Index, backend: Backend, time_limit: float | None = TIME_LIMIT) -> None:
        self._index, self._backend, self._time_limit = index, backend, check_time_limit(time_limit)
        self.info = _info(index, backend.name)

    def frames(self, indices: Sequence[int]) -> Video:
        """Return frames by number, in any order and with repeats.

        Args:
            indices: integers from 0 to ``info.frames - 1``.

        Raises:
            TypeError: ``indices`` is not a sequence of integers.
            ValueError: it is empty, out of range, or asks for more than 512 MiB.
            VideoError: the file is damaged where the frames are, or reading them takes more time than the limit or
                more memory than is allowed.
        """
        return self._frames(indices, Deadline(self._time_limit))

    def _frames(self, indices: Sequence[int], deadline: Deadline) -> Video:
        numbers = sampling.explicit(self.info.frames, indices)
        size = len(numbers) * self.info.width * self.info.height * 3
        if size > MAX_BYTES:
            limit = MAX_BYTES // (size // len(numbers))
            raise ValueError(
                f"indices must be at most {limit} frames of this size, which is {MAX_BYTES >> 20} MiB, got "
                f"{len(numbers)}: ask for fewer at a time"
            )
        pixels, name, fallback = decode(self._backend, self._index, numbers, deadline)
        chosen = np.array(numbers, dtype=np.int64)
        info = replace(self.info, backend=name, fallback=fallback)
        return Video(pixels, self._index.seconds(chosen), chosen, info)

    def sample(
        self,
        frames: int | None = None,
        *,
        fps: float | Fraction | None = None,
        indices: Sequence[int] | None = None,
        keyframes: bool = False,
        start: float | None = None,
        end: float | None = None,
    ) -> list[int]:
        """Return the frame numbers that `read_video` reads for the same arguments. Nothing is decoded."""
        check_flag("keyframes", keyframes)
        given = {"frames": frames, "fps": fps, "indices": indices, "keyframes": keyframes or None}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise ValueError(
                f"frames, fps, indices and keyframes must be given one at a time, got {' and '.join(named)}"
            )
        if indices is not None:
            if start is not None or end is not None:
                raise ValueError("indices must not be given with start or end")
            return sampling.explicit(self.info.frames, indices)
        window = self._window(start, end)
        if keyframes:
            return sampling.key_frames(window, self.info.key_frames)
        if fps is not None:
            return sampling.by_rate(window, self._index.ticks, fps, self._index.time_base)
        return sampling.uniform(window, min(DEFAULT_FRAMES, len(window)) if frames is None else frames)

    def _window(self, start: float | None, end: float | None) -> range:
        first, last = check_seconds("start", start), check_seconds("end", end)
        duration = self.info.duration
        if first is not None and not 0 <= first < duration:
            raise ValueError(
                f"start must be in [0, {duration:.3f}), the length of the clip in seconds, got {shown(start)}"
            )
        # Durations are rounded in many containers: a frame's length past the end is the end.
        slack = duration / self.info.frames
        if last is not None and not 0 < last <= duration + slack:
            raise ValueError(f"end must be in (0, {duration:.3f}], the length of the clip in seconds, got {shown(end)}")
        if last is not None and (first or 0) >= last:
            raise ValueError(f"end must be later than start, {shown(start)}, got {shown(end)}")
        ticks, base = self._index.ticks, self._index.time_base
        chosen = sampling.window(ticks, ticks_at(first, ticks, base), ticks_at(last, ticks, base))
        if not chosen:
            raise ValueError(f"start and end must be a window in which a frame appears, got {start} and {end}")
        return chosen


def open_video(
    path: str | os.PathLike[str], backend: str = "auto", *, time_limit: float | None = TIME_LIMIT
) -> VideoFile:
    """Read where the frames of a file are, and when they appear; no more than the first is decoded.

    Args:
        path: a regular file. An address is refused.
        backend: "pyav", "decord", "torchcodec", or "auto" for the fastest that is here. A file that the named one is
            known to read differently, or fails on, is read by PyAV, and ``info.fallback`` says why.
        time_limit: seconds that this may take, and then every call of `VideoFile.frames`; None for no limit.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the backend is unknown or cannot run here, or the limit is out of range.
        FileNotFoundError, IsADirectoryError, PermissionError: as they say.
        VideoError: it is not a video that can be read, is damaged or truncated, or takes too much time or memory; or
            PyAV is missing.
    """
    return _open(path, backend, time_limit, Deadline(check_time_limit(time_limit)))


def _open(path: str | os.PathLike[str], backend: str, time_limit: float | None, deadline: Deadline) -> VideoFile:
    chosen = choose(backend)
    from vitcop_video.readers.opening import read_index  # needs PyAV, which `choose` has looked for

    return VideoFile(read_index(path, deadline), chosen, time_limit)


def read_video(
    path: str | os.PathLike[str],
    frames: int | None = None,
    *,
    fps: float | Fraction | None = None,
    indices: Sequence[int] | None = None,
    keyframes: bool = False,
    start: float | None = None,
    end: float | None = None,
    backend: str = "auto",
    time_limit: float | None = TIME_LIMIT,
) -> Video:
    """Read frames of a video file, with the times at which they appear.

    At most one of ``frames``, ``fps``, ``indices`` and ``keyframes`` says which; without any, eight frames at equal
    distances, or all where there are fewer. Only the parts of the file that they need are decoded.

    Args:
        path: a regular file.
        frames: how many, at equal distances: the indices of transformers' own sampling for LLaVA-NeXT-Video.
        fps: frames per second, at most the clip's own rate.
        indices: frame numbers, in any order and with repeats.
        keyframes: the frames that are stored whole.
        start: seconds after the first frame; frames that appear earlier are left out.
        end: seconds after the first frame; frames that appear then or later are left out.
        backend: as for `open_video`.
        time_limit: seconds that all of it may take; None for no limit.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, two are at odds, or the frames would take more than 512 MiB.
        FileNotFoundError, IsADirectoryError, PermissionError: as they say.
        VideoError: it is not a video that can be read, is damaged or truncated, or takes too much time or memory; or
            PyAV is missing.
    """
    deadline = Deadline(check_time_limit(time_limit))
    video = _open(path, backend, time_limit, deadline)
    chosen = video.sample(frames, fps=fps, indices=indices, keyframes=keyframes, start=start, end=end)
    return video._frames(chosen, deadline)  # one limit for both


def _info(index: Index, backend: str) -> VideoInfo:
    ticks, base = index.ticks, index.time_base
    width, height = index.size
    spread = int(ticks[-1] - ticks[0])
    # Rounding to the container's clock moves a frame by one tick at most.
    gaps = np.diff(ticks)
    varies = len(gaps) > 1 and bool(np.abs(gaps - gaps.mean()).max() > 1)
    return VideoInfo(
        path=str(index.path),
        frames=len(ticks),
        width=width,
        height=height,
        duration=float((spread + index.last_duration) * base),
        fps=float((len(ticks) - 1) / (spread * base)) if spread else None,
        has_variable_rate=varies,
        codec=index.codec,
        container=index.container,
        seconds=index.seconds(np.arange(len(ticks))),
        key_frames=index.key_frames,
        backend=backend,
        pixel_aspect=index.pixel_aspect,
    )
