"""Where the frames of a file are: its packets, read once and without decoding.

Every backend works from this index, so a frame has the same number and the same time whichever one decodes it. It holds
about thirty bytes a frame, and is all that grows with the length of a clip.
"""

from __future__ import annotations

import os
import stat
from array import array
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vitcop_video.readers.base import MAX_PACKETS, MAX_PIXELS, VideoError
from vitcop_video.readers.mp4 import check_sample_counts
from vitcop_video.readers.orientation import Orientation, orientation_of

FORMATS = ("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif")
"""Containers that are opened, by FFmpeg's names. It knows formats that name other files, or addresses: never those."""

TIMEOUT = 30.0
"""Seconds that one read from the file may take."""

_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_REORDERED_IN_AVI = ("h264", "hevc")


@dataclass(frozen=True, eq=False)
class Index:
    """The packets of a clip's video stream, P of them, N of which become frames.

    Attributes:
        path: absolute.
        container, codec, pixel_format: FFmpeg's names.
        width, height: of a frame as it is coded, in pixels.
        orientation: how to turn a coded frame upright.
        time_base: seconds a tick.
        packets: [P] int64, in the order of decoding: ticks at which each packet's frame appears.
        order: [N] int64, in the order of appearance: the packet of each frame.
        starts: [N] int64: the key packet to decode from, for each frame.
        keys: [K] int64: packets of key frames.
        last_duration: ticks for which the last frame stays.
        hides_packets: the container has packets that are decoded and not shown.
        is_fragmented: an MP4 without a table of its frames in its header.
        is_interlaced: the first frame is, or the stream is said to be.
    """

    path: Path
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    orientation: Orientation
    time_base: Fraction
    packets: NDArray[np.int64]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    keys: NDArray[np.int64]
    last_duration: int
    hides_packets: bool
    is_fragmented: bool
    is_interlaced: bool

    @property
    def ticks(self) -> NDArray[np.int64]:
        """[N] int64, strictly ascending: when each frame appears."""
        return self.packets[self.order]

    @property
    def key_frames(self) -> NDArray[np.int64]:
        """[K'] int64, ascending: the frames that are key frames."""
        return np.flatnonzero(self.starts == self.order)

    @property
    def has_leading_frames(self) -> bool:
        """Whether frames follow a key frame in the file and appear before it (an open group of pictures)."""
        earliest_after = np.minimum.accumulate(self.packets[::-1])[::-1]
        return bool((earliest_after[self.keys] < self.packets[self.keys]).any())

    def seconds(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """When frames appear, in seconds after the first one: float64 of the shape of ``frames``."""
        ticks = self.packets[self.order[frames]] - self.packets[self.order[0]]
        seconds: NDArray[np.float64] = ticks * float(self.time_base.numerator) / self.time_base.denominator
        return seconds


def check_path(path: str | os.PathLike[str]) -> Path:
    """An absolute path to a regular file that can be read: not an address, and nothing that could block.

    Raises:
        TypeError: ``path`` is not a path.
        FileNotFoundError, IsADirectoryError, PermissionError: as they say.
        VideoError: it is an address, a pipe, a device, or empty.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path must be a string or a path; got {path!r} ({type(path).__name__})") from None
    if "\0" in text:
        raise VideoError(f"path must be the name of a file; got {path!r}")
    # Absolute, so that FFmpeg sees no protocol in a name such as "concat:a". O_NONBLOCK: a pipe has no writer.
    full = Path(text).absolute()
    try:
        if "://" in text and not full.exists():
            raise VideoError(f"path must be a file on this machine, not an address; got {text}")
        _check_regular(full, full.stat())
        descriptor = os.open(full, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"path: no such file: {text}") from None
    except PermissionError:
        raise PermissionError(f"path: no permission to read {text}") from None
    except VideoError:
        raise
    except IsADirectoryError:
        raise IsADirectoryError(f"path must be a file, got the folder {text}") from None
    except OSError as error:
        raise VideoError(f"path: cannot read {text}: {error.strerror}") from error
    os.close(descriptor)
    return full


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"path must be a regular file; got {path}, a pipe, socket or device")
    if status.st_size == 0:
        raise VideoError(f"path: {path} is empty")


def open_container(path: Path) -> InputContainer:
    """Opens a file that `check_path` accepted, as a container of one of `FORMATS` and nothing else."""
    return av.open(
        str(path),
        container_options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"},
        options={"max_pixels": str(MAX_PIXELS)},
        metadata_errors="replace",
        timeout=TIMEOUT,
    )


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first stream that is moving pictures and not a cover."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise VideoError(f"path: {path} has no video in it")


def read_index(path: str | os.PathLike[str]) -> Index:
    """Reads the packets of a file, and decodes its first frame.

    Raises:
        TypeError, FileNotFoundError, IsADirectoryError, PermissionError: as `check_path`.
        VideoError: it is no video that can be read, or it is damaged or truncated.
    """
    full = check_path(path)
    check_sample_counts(full)
    try:
        with open_container(full) as container:
            return _read(container, full)
    except av.FFmpegError as error:
        raise VideoError(f"path: {full} is not a video that can be read, or is damaged ({error.strerror})") from error


@dataclass
class _Packets:
    """What one pass over a stream finds; positions count its packets."""

    ticks: array[int]
    keys: array[int]
    hidden: array[int]
    last_duration: int
    first: VideoFrame


def _read(container: InputContainer, path: Path) -> Index:
    stream = video_stream(container, path)
    if stream.time_base is None:
        raise VideoError(f"path: {path} has a video without a clock")
    found = _packets(container, stream, path)
    _check_whole(container, stream, path, found)
    if "avi" in container.format.name and stream.codec_context.has_b_frames and stream.name in _REORDERED_IN_AVI:
        raise VideoError(f"path: {path} is an AVI with B-frames, which cannot say when they appear; encode it again")
    packets, keys = np.array(found.ticks, dtype=np.int64), np.array(found.keys, dtype=np.int64)
    order = np.argsort(packets, kind="stable")
    order = order[np.isin(order, np.array(found.hidden, dtype=np.int64), invert=True)]
    if (np.diff(packets[order]) == 0).any():
        raise VideoError(f"path: {path} has frames that appear at the same time; encode it again")
    starts = _starts(packets, order, keys)
    order, starts = order[starts >= 0], starts[starts >= 0]
    if not len(order):
        raise VideoError(f"path: {path} has no frame that can be decoded")
    return Index(
        path=path,
        container=container.format.name,
        codec=stream.codec_context.name,
        pixel_format=found.first.format.name,
        width=found.first.width,
        height=found.first.height,
        orientation=orientation_of(found.first),
        time_base=stream.time_base,
        packets=packets,
        order=order,
        starts=starts,
        keys=keys,
        last_duration=found.last_duration,
        hides_packets=bool(found.hidden),
        is_fragmented=container.format.name == _MOV and stream.frames == 0,
        is_interlaced=found.first.interlaced_frame or stream.codec_context.field_order > 1,
    )


def _packets(container: InputContainer, stream: VideoStream, path: Path) -> _Packets:
    ticks, keys, hidden = array("q"), array("q"), array("q")
    first: VideoFrame | None = None
    latest, last_duration = None, 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.pts is None:
            raise VideoError(f"path: {path} does not say when its frames appear; encode it again")
        if len(ticks) == MAX_PACKETS:
            raise VideoError(f"path: {path} has more than {MAX_PACKETS} frames")
        if packet.is_keyframe:
            if first is None:
                _check_size(path, stream.codec_context.width, stream.codec_context.height)
                # Drained at once: the first frame says what the header may not, such as which way is up.
                first = next(iter([*stream.codec_context.decode(packet), *stream.codec_context.decode(None)]), None)
                stream.codec_context.flush_buffers()
            keys.append(len(ticks))
        if packet.is_discard:
            hidden.append(len(ticks))
        if latest is None or packet.pts > latest:
            latest, last_duration = packet.pts, packet.duration or 0
        ticks.append(packet.pts)
    if first is None:
        raise VideoError(f"path: {path} has no frame that can be decoded")
    _check_size(path, first.width, first.height)
    if last_duration <= 0 and len(ticks) > 1:
        last_duration = round((max(ticks) - min(ticks)) / (len(ticks) - 1))
    return _Packets(ticks, keys, hidden, last_duration, first)


def _check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(
            f"path: frames of {path} must have 1 to {MAX_PIXELS / 1e6:.0f} megapixels; they are {width} x {height}"
        )


def _check_whole(container: InputContainer, stream: VideoStream, path: Path, found: _Packets) -> None:
    """Refuses a file that ends before what its header promises, where the container makes such a promise."""
    have = len(found.ticks)
    promised = stream.frames if container.format.name == "avi" else len(stream.index_entries)
    if container.format.name in ("avi", _MOV) and have < promised:
        raise VideoError(f"path: {path} is truncated: its header promises {promised} frames, it holds {have}")
    text = {key.upper(): value for key, value in stream.metadata.items()}.get("DURATION")
    if text is None or stream.time_base is None or "matroska" not in container.format.name:
        return
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
    except ValueError:  # a tag that anyone may have written
        return
    promised_seconds = 3600 * hours + 60 * minutes + seconds
    held = float((max(found.ticks) + found.last_duration) * stream.time_base)
    # Muxers count the last frame or do not; a clip of few frames a second may be a whole one short.
    slack = max(0.25, 2 * held / have)
    if held < promised_seconds - slack:
        raise VideoError(
            f"path: {path} is truncated: its header promises {promised_seconds:.1f} s, it holds {held:.1f} s"
        )


def _starts(packets: NDArray[np.int64], order: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] int64: the last key packet at or before each frame's, in decoding and in appearance; -1 where none is."""
    place = np.searchsorted(keys, order, side="right") - 1
    while True:
        early = (place >= 0) & (packets[keys[place]] > packets[order])
        if not early.any():
            return np.where(place >= 0, keys[place], -1)
        place[early] -= 1
