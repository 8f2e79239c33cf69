"""Reading an index: every packet of a file, and its first frame."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vitcop_video.readers.base import (
    MAX_PACKET_BYTES,
    MAX_PACKETS,
    MAX_PIXEL_ASPECT,
    MAX_PIXELS,
    Deadline,
    VideoError,
)
from vitcop_video.readers.index import Index, scaled_width
from vitcop_video.readers.library import field_order, promised_entries
from vitcop_video.readers.memory import KNOWN_DECODERS, PLAIN_PIXELS
from vitcop_video.readers.orientation import Orientation

FORMATS = ("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif")
"""Containers that are opened, by FFmpeg's names. It knows formats that name other files, or addresses: never those."""

TIMEOUT = 30.0
"""Seconds that one read from the file may take."""

_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_REORDERED_IN_AVI = ("h264", "hevc")
_MARKS_CUT_PACKETS = ("avi", "mov", "matroska", "flv", "asf")
"""Containers whose packets are told by their length: a corrupt last one was cut off."""


class UnplainError(Exception):
    """A file is not what it seemed to be, and has to be read where memory is limited."""


@dataclass(frozen=True)
class Opening:
    """How a file is opened.

    Attributes:
        path: absolute.
        form: the one container that it may be, by FFmpeg's name; None for any of `FORMATS`.
        is_confined: this process has a limit on its memory, so that the file may be anything.
    """

    path: Path
    form: str | None
    is_confined: bool


def open_container(opening: Opening, deadline: Deadline) -> InputContainer:
    """Open a file that `check_path` accepted, as the container that was recognized and nothing else."""
    left = TIMEOUT if deadline.left is None else min(TIMEOUT, max(0.001, deadline.left))
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    if not opening.is_confined:
        options["codec_whitelist"] = ",".join(KNOWN_DECODERS)
    # PyAV 15 crashes over options for streams that the header does not name. Such files are read in confinement alone.
    names_streams = opening.form in ("mov", "matroska", "avi", "gif")
    limit = MAX_PIXELS if opening.is_confined else PLAIN_PIXELS
    decoding = {"max_pixels": str(limit), "threads": "1"} if names_streams else {}
    return av.open(
        str(opening.path),
        format=opening.form,
        container_options=options,
        options=decoding,
        metadata_errors="replace",
        timeout=left,
    )


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the first stream that is moving pictures and not a cover."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise VideoError(f"path must be a video that can be read, got {path}, which has no video in it")


def scan(opening: Opening, deadline: Deadline) -> Index:
    """Read the packets of a file, and decode its first frame.

    Raises:
        VideoError: it is not a video that can be read, it is damaged or truncated, or the time is over.
        UnplainError: it is not what it seemed to be.
    """
    path = opening.path
    try:
        with open_container(opening, deadline) as container:
            return _read(container, opening, deadline)
    except av.FFmpegError as error:
        deadline.check(path)
        raise VideoError(
            f"path must be a video that can be read, got {path}, which is none, or is damaged ({error.strerror})"
        ) from error


@dataclass
class _Pass:
    """What one pass over a stream finds; positions count its packets."""

    ticks: array[int]
    keys: array[int]
    hidden: array[int]
    last_duration: int
    largest: int
    ends_cut: bool
    first: VideoFrame


def _read(container: InputContainer, opening: Opening, deadline: Deadline) -> Index:
    path, stream = opening.path, video_stream(container, opening.path)
    context = stream.codec_context
    _check_size(path, context.width, context.height, may_be_unknown=True)
    if not opening.is_confined and (
        context.name not in KNOWN_DECODERS or not 0 < context.width * context.height <= PLAIN_PIXELS
    ):
        raise UnplainError
    if stream.time_base is None:
        raise VideoError(f"path must be a video that can be read, got {path}, which has no clock")
    context.options = {**context.options, "max_pixels": str(MAX_PIXELS if opening.is_confined else PLAIN_PIXELS)}
    found = _packets(container, stream, path, deadline)
    _check_whole(container, stream, path, found)
    if _name(container) == "avi" and stream.codec_context.has_b_frames and stream.name in _REORDERED_IN_AVI:
        raise VideoError(f"path must say when its frames appear, got {path}, an AVI with B-frames; encode it again")
    packets, keys = np.array(found.ticks, dtype=np.int64), np.array(found.keys, dtype=np.int64)
    order = np.argsort(packets, kind="stable")
    order = order[np.isin(order, np.array(found.hidden, dtype=np.int64), invert=True)]
    if (np.diff(packets[order]) == 0).any():
        raise VideoError(
            f"path must say when its frames appear, got {path}, where some appear at the same time; encode it again"
        )
    starts = _starts(packets, order, keys)
    order, starts = order[starts >= 0], starts[starts >= 0]
    if not len(order):
        raise VideoError(f"path must be a video that can be read, got {path}, which has no frame that can be decoded")
    aspect = _pixel_aspect(stream, path)
    _check_size(path, scaled_width(found.first.width, aspect), found.first.height)
    return Index(
        path=path,
        container=_name(container),
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
        is_fragmented=_name(container) == _MOV and stream.frames == 0,
        is_interlaced=found.first.interlaced_frame or field_order(stream) > 1,
        pixel_aspect=aspect,
        largest=found.largest,
        form=opening.form,
        is_confined=opening.is_confined,
    )


def _packets(container: InputContainer, stream: VideoStream, path: Path, deadline: Deadline) -> _Pass:
    ticks, keys, hidden = array("q"), array("q"), array("q")
    first: VideoFrame | None = None
    latest, last_duration, largest, ends_cut = None, 0, 0, False
    for packet in container.demux(stream):
        deadline.check(path)
        size = packet.size
        if not size:
            continue
        if size > MAX_PACKET_BYTES:
            raise VideoError(
                f"path {path} must have coded frames of at most {MAX_PACKET_BYTES >> 20} MiB, got {size >> 20} MiB"
            )
        largest, ends_cut = max(largest, size), packet.is_corrupt
        if packet.pts is None:
            raise VideoError(f"path must say when its frames appear, got {path}, which does not; encode it again")
        if len(ticks) == MAX_PACKETS:
            raise VideoError(f"path {path} must have at most {MAX_PACKETS} frames, got more")
        if packet.is_keyframe:
            if first is None:
                _check_size(path, stream.codec_context.width, stream.codec_context.height)
                first = _look(stream, packet)
            keys.append(len(ticks))
        if packet.is_discard:
            hidden.append(len(ticks))
        if latest is None or packet.pts > latest:
            latest, last_duration = packet.pts, packet.duration or 0
        ticks.append(packet.pts)
    if first is None:
        raise VideoError(f"path must be a video that can be read, got {path}, which has no frame that can be decoded")
    _check_size(path, first.width, first.height)
    if last_duration <= 0 and len(ticks) > 1:
        last_duration = round((max(ticks) - min(ticks)) / (len(ticks) - 1))
    return _Pass(ticks, keys, hidden, last_duration, largest, ends_cut, first)


def _name(container: InputContainer) -> str:
    """Return FFmpeg's name, the same whether it was told or found out."""
    name = container.format.name
    return next((full for full in (_MOV, "matroska,webm") if name in full.split(",")), name)


def _look(stream: VideoStream, packet: Packet[Any]) -> VideoFrame | None:
    """Decode one packet by itself: the first frame says what the header may not, such as which way is up."""
    context = stream.codec_context
    if not context.is_open:
        context.thread_count = 1
    if packet.is_discard:
        # What is marked as hidden is decoded and thrown away. A copy of its bytes bears no mark.
        shown: Packet[Any] = Packet(bytes(packet))
        shown.pts, shown.dts, shown.time_base = packet.pts, packet.dts, packet.time_base
        packet = shown
    frames = [*context.decode(packet), *context.decode(None)]
    context.flush_buffers()
    return frames[0] if frames else None


def _pixel_aspect(stream: VideoStream, path: Path) -> Fraction:
    """Return the container's word on the shape of a pixel, or else the codec's; square where neither says."""
    aspect = stream.sample_aspect_ratio
    if aspect is None or aspect <= 0:
        return Fraction(1)
    if not Fraction(1, MAX_PIXEL_ASPECT) <= aspect <= MAX_PIXEL_ASPECT:
        raise VideoError(
            f"path {path} must have pixels at most {MAX_PIXEL_ASPECT} times as wide as high, or as high as wide, "
            f"got {aspect.numerator}:{aspect.denominator}"
        )
    return aspect


def orientation_of(frame: VideoFrame) -> Orientation:
    """Return how to turn a frame, from the display matrix that it carries, if any."""
    side_data: Any = frame.side_data  # iterates over SideData, which its annotations do not say
    data = next((each for each in side_data if each.type == Type.DISPLAYMATRIX), None)
    if data is None:
        return Orientation()
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    if a and d and not b and not c:
        return Orientation(False, a < 0, d < 0)
    if b and c and not a and not d:
        return Orientation(True, c < 0, b < 0)
    return Orientation(is_exact=False)


def _check_size(path: Path, width: int, height: int, may_be_unknown: bool = False) -> None:
    if may_be_unknown and not width * height:
        return
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(
            f"path {path} must have frames of 1 to {MAX_PIXELS / 1e6:.0f} megapixels, got {width} x {height}"
        )


def _check_whole(container: InputContainer, stream: VideoStream, path: Path, found: _Pass) -> None:
    """Refuse a file that ends before what its header promises, where the container makes such a promise."""
    have, name = len(found.ticks), _name(container)
    promised = stream.frames if name == "avi" else promised_entries(stream)
    if name in ("avi", _MOV) and have < promised:
        raise VideoError(
            f"path must be a whole video, got {path}, which is truncated: its header promises {promised} frames, it "
            f"holds {have}"
        )
    if found.ends_cut and name.split(",")[0] in _MARKS_CUT_PACKETS:
        raise VideoError(f"path must be a whole video, got {path}, which is truncated: it ends in the midst of a frame")
    text = {key.upper(): value for key, value in stream.metadata.items()}.get("DURATION")
    if text is None or stream.time_base is None or "matroska" not in _name(container):
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
            f"path must be a whole video, got {path}, which is truncated: its header promises {promised_seconds:.1f} "
            "s, "
            f"it holds {held:.1f} s"
        )


def _starts(packets: NDArray[np.int64], order: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``[N]`` int64: the last key packet at or before each frame's, in decoding and in appearance; -1 where none
    is.
    """
    place = np.searchsorted(keys, order, side="right") - 1
    while True:
        early = (place >= 0) & (packets[keys[place]] > packets[order])
        if not early.any():
            return np.where(place >= 0, keys[place], -1)
        place[early] -= 1
