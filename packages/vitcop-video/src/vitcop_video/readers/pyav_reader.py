"""Frames by PyAV: in this process, and no packet decoded that no wanted frame needs.

Frames that need the same key frame are one run of packets. Between runs the file is sought, or read on where the next
key frame is near. Inside a run, frames that nothing refers to are skipped unless they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vitcop_video.readers.base import Deadline, VideoError
from vitcop_video.readers.confined import decode_confined
from vitcop_video.readers.index import Index
from vitcop_video.readers.memory import WORST_BYTES, pixel_limit, plain_threads
from vitcop_video.readers.scan import Opening, open_container, video_stream

READ_ON = 64
"""Packets that are read and dropped rather than sought over: a seek costs about as much."""

DECODE_ON = 3
"""Packets that are decoded and not wanted rather than ending a run: emptying the decoder costs about as much."""

_SKIPS_UNREFERENCED = ("h264", "hevc")


@dataclass
class _Run:
    """Packets ``start`` to ``last``, with frames appearing at the ticks of ``wanted`` among them."""

    start: int
    last: int
    wanted: dict[int, int] = field(default_factory=dict)


def decode(index: Index, frames: Sequence[int], deadline: Deadline) -> NDArray[np.uint8]:
    """Return upright frames, [F, H, W, 3] uint8, of ascending frame numbers without repeats.

    Raises:
        VideoError: a wanted frame is damaged, the time is over, or it takes more memory than it may.
    """
    width, height = index.size
    threads = plain_threads(index, len(frames) * width * height * 3)
    if not threads:
        return decode_confined(index, frames, deadline)
    pixels = np.empty((len(frames), height, width, 3), dtype=np.uint8)

    def keep(place: int, rows: NDArray[np.uint8]) -> None:
        index.orientation.undo(pixels[place])[...] = rows

    decode_frames(index, frames, keep, deadline, threads)
    return pixels


def decode_frames(
    index: Index,
    frames: Sequence[int],
    keep: Callable[[int, NDArray[np.uint8]], None],
    deadline: Deadline,
    threads: int,
) -> None:
    """Decode frames of ascending numbers in this process.

    Args:
        index: of the file.
        frames: their numbers.
        keep: is given the place of each in ``frames`` and its pixels as they are coded, [h, w, 3], made square.
        deadline: by which it has to be done.
        threads: how many decode.

    Raises:
        VideoError: a wanted frame is damaged, or the time is over.
    """
    done = set()

    def take(run: _Run, frame: VideoFrame) -> None:
        place = run.wanted.get(frame.pts) if frame.pts is not None else None
        if place is not None:
            keep(place, _pixels(index, frame, frames[place]))
            done.add(place)

    opening = Opening(index.path, index.form, index.is_confined)
    with _opened(opening, deadline) as container:
        packets = _Packets(index, container, video_stream(container, index.path), deadline, threads)
        for run in _runs(index, frames):
            try:
                _decode_run(index, packets, run, take)
            except av.FFmpegError as error:
                deadline.check(index.path)
                _check_memory(index)
                where = _label(index, frames[max(run.wanted.values())])
                raise VideoError(
                    f"path must be a whole video, got {index.path}, which is damaged at {where} or before "
                    f"({error.strerror})"
                ) from error
        if missing := sorted(set(range(len(frames))) - done):
            _check_memory(index)
    if missing:
        raise VideoError(
            f"path must be a whole video, got {index.path}, which is damaged: {_label(index, frames[missing[0]])} "
            "cannot be decoded"
        )


def _check_memory(index: Index) -> None:
    """Raise `MemoryError` where a confined decoder cannot have failed for anything else: FFmpeg calls that damage."""
    if index.is_confined:
        np.empty(index.width * index.height * WORST_BYTES, dtype=np.uint8)  # gone at once


def _opened(opening: Opening, deadline: Deadline) -> InputContainer:
    try:
        return open_container(opening, deadline)
    except av.FFmpegError as error:
        deadline.check(opening.path)
        raise VideoError(
            f"path must be a file that can be opened again, got {opening.path} ({error.strerror})"
        ) from error


def _runs(index: Index, frames: Sequence[int]) -> list[_Run]:
    runs: list[_Run] = []
    for place, frame in enumerate(frames):
        start, packet = int(index.starts[frame]), int(index.order[frame])
        if not runs or not runs[-1].start <= start <= runs[-1].last + DECODE_ON:
            runs.append(_Run(start, packet))
        runs[-1].last = max(runs[-1].last, packet)
        runs[-1].wanted[int(index.packets[packet])] = place
    return runs


def _decode_run(index: Index, packets: _Packets, run: _Run, keep: Callable[[_Run, VideoFrame], None]) -> None:
    decoder = packets.stream.codec_context
    for packet in packets.between(run.start, run.last):
        if packet.pts is None or packet.pts < index.packets[run.start]:
            continue  # it appears before the key frame, and needs what was not decoded
        if index.codec in _SKIPS_UNREFERENCED:
            decoder.skip_frame = "DEFAULT" if packet.pts in run.wanted else "NONREF"
        for frame in decoder.decode(packet):
            keep(run, frame)
    for frame in decoder.decode(None):
        keep(run, frame)
    decoder.flush_buffers()


class _Packets:
    """The packets of a stream by their position, read in whatever order is asked for."""

    def __init__(
        self, index: Index, container: InputContainer, stream: VideoStream, deadline: Deadline, threads: int
    ) -> None:
        stream.thread_type, context = "AUTO", stream.codec_context
        context.thread_count = threads
        context.options = {**context.options, "max_pixels": str(pixel_limit(index))}
        self._index, self._container, self.stream, self._deadline = index, container, stream, deadline
        self._by_ticks = np.argsort(index.packets, kind="stable")
        self._next, self._iterator = 0, iter(container.demux(stream))

    def between(self, start: int, last: int) -> Iterator[Packet[VideoStream]]:
        """Return the packets ``start`` to ``last``, both included."""
        if not self._next <= start <= self._next + READ_ON:
            self._seek(start)
        while self._next <= last:
            packet = next(self._iterator, None)
            self._deadline.check(self._index.path)
            if packet is None or packet.pts is None:
                raise VideoError(
                    f"path must be left alone while it is read, got {self._index.path}, which ended early when it was "
                    "read again"
                )
            self._next += 1
            if self._next > start:
                yield packet

    def _seek(self, start: int) -> None:
        """Move to the packet ``start`` or one before it."""
        keys = self._index.keys
        place = int(np.searchsorted(keys, start, side="right")) - 1
        step = 1
        # A container's own index may lead to a later key frame than the one asked for: then ask for earlier ones.
        while True:
            self._container.seek(int(self._index.packets[keys[place]]), stream=self.stream)
            landed = self._land()
            if landed is not None and landed <= start:
                return
            if place == 0:
                raise VideoError(
                    f"path must be a video that can be sought, got {self._index.path}, whose index is broken; remux it"
                )
            place, step = max(0, place - step), 2 * step

    def _land(self) -> int | None:
        """Return the position of the next packet; None at the end."""
        iterator = iter(self._container.demux(self.stream))
        for packet in iterator:
            if packet.pts is None:
                continue  # the rest of a packet in whose midst a transport stream was entered
            place = int(np.searchsorted(self._index.packets, packet.pts, sorter=self._by_ticks))
            if place == len(self._by_ticks) or self._index.packets[self._by_ticks[place]] != packet.pts:
                continue
            self._next, self._iterator = int(self._by_ticks[place]), chain([packet], iterator)
            return self._next
        return None


def _pixels(index: Index, frame: VideoFrame, number: int) -> NDArray[np.uint8]:
    """Return the frame as it is coded, with square pixels: [H, W, 3], a view of memory of FFmpeg's."""
    if frame.is_corrupt:
        raise VideoError(
            f"path must be a whole video, got {index.path}, which is damaged: {_label(index, number)} is incomplete"
        )
    if (frame.width, frame.height) != (index.width, index.height):
        raise VideoError(
            f"path {index.path} must have frames of one size, {index.width} x {index.height}, got "
            f"{frame.width} x {frame.height} in {_label(index, number)}"
        )
    width = index.scaled_width
    shown = frame.reformat(width=width, format="rgb24", interpolation=Interpolation.BICUBIC)
    plane = shown.planes[0]
    # A plane gives its memory, which its annotations do not say.
    lines: NDArray[np.uint8] = np.frombuffer(memoryview(cast("bytes", plane)), dtype=np.uint8).reshape(
        -1, plane.line_size
    )
    return lines[: frame.height, : 3 * width].reshape(frame.height, width, 3)


def _label(index: Index, number: int) -> str:
    return f"frame {number}, at {index.seconds(np.array([number]))[0]:.3f} s,"
