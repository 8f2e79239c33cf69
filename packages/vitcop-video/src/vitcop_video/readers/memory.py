"""How much memory decoding takes at worst, and so how many threads may decode, and where."""

from __future__ import annotations

import os

from vitcop_video.readers.base import BUDGET, MAX_PACKETS
from vitcop_video.readers.index import Index

KNOWN_DECODERS = tuple(
    "h264 hevc vp8 vp9 libdav1d av1 mpeg4 mpeg2video mpeg1video mjpeg gif theora wmv1 wmv2 wmv3 vc1 msmpeg4 msmpeg4v2 "
    "h263 flv rawvideo png ffv1 huffyuv ffvhuff aac mp3 mp3float pcm_s16le vorbis opus ac3 libopus".split()
)
"""Decoders, by FFmpeg's names, that hold frames and little else. Any other runs where memory is limited."""

HELD_FRAMES = 34
"""That a decoder holds at worst: 16 to predict from, 16 that wait for their turn, one in work and one given out."""

WORST_BYTES = 6
"""Of a pixel: three channels of 16 bits, whatever the header says."""

PLAIN_PIXELS = BUDGET // 2 // (HELD_FRAMES * WORST_BYTES) + 1_000_000
"""Of frames that are looked at without a limit on memory: a little more than 2560 x 1280."""

MAX_THREADS = 16

_INDEX_BYTES = 128
"""That a frame takes at most in the index, FFmpeg's and ours."""


def plain_threads(index: Index, result: int) -> int:
    """Return with how many threads this process may decode a file beside a result of so many bytes; 0 for none."""
    if index.is_confined:
        return 0
    pixels = max(1_000_000, _aligned(index.width) * _aligned(index.height))
    frame = WORST_BYTES * pixels
    fixed = result + len(index.packets) * _INDEX_BYTES + 3 * index.size[0] * index.size[1] + 2 * index.largest
    free = BUDGET - fixed - HELD_FRAMES * frame
    return max(0, min(_cores(), free // (frame + index.largest)))


def confined_threads(index: Index, size: int) -> int:
    """Return with how many threads a process that may take ``size`` bytes should try to decode a file."""
    # Of what is common: 12 frames of eight bits, 4:2:0. A file that needs more is tried again with one thread.
    frame = _aligned(index.width) * _aligned(index.height) * 3 // 2
    free = size - 12 * frame - 3 * index.size[0] * index.size[1]
    return max(1, min(_cores(), free // (frame + index.largest + 1)))


def pixel_limit(index: Index) -> int:
    """Return how many pixels the decoder may be asked for: those of the first frame, as codecs round them up."""
    return max(1_000_000, _aligned(index.width) * _aligned(index.height))


def confined_bytes(result: int) -> int:
    """Return how much a process may take beside a result of so many bytes in this one."""
    return BUDGET - result - MAX_PACKETS * 32


def _aligned(side: int) -> int:
    """Round up to a multiple of 64: codecs work on blocks of up to 64 pixels."""
    return -(-side // 64) * 64


def _cores() -> int:
    return min(MAX_THREADS, (os.cpu_count() or 1) + 1)
