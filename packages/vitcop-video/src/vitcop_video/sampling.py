"""Which frames to look at: functions on integers, with no tensor, no array and no file.

Times are integer *ticks* of the container's clock, which one needs no rounding to compare. A window is a `range` of
frame indices, and every function answers with indices into the whole clip, ascending.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

from vitcop_core.checks import check_int, check_positive, check_sequence, require


class Ticks(Protocol):
    """Ascending integers: a list, or an integer array of one dimension."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> int: ...


def uniform(window: range, frames: int) -> list[int]:
    """Return frames at equal distances, the first of the window among them.

    These are the indices of transformers' own sampling for LLaVA-NeXT-Video (``default_sample_indices_fn``): frame i of
    F is ``i * length // F``. Its documentation's ``np.arange(0, total, total / F).astype(int)`` differs now and then by
    one, where a float falls just short of a whole number, and at times gives F + 1 frames; older versions, 5.17 among
    them, step by the whole part of ``length / F`` and leave out the end.

    Args:
        window: the frames to choose from.
        frames: how many, at most ``len(window)``.

    Raises:
        TypeError: ``frames`` is not an integer.
        ValueError: it is below one, or more than there are.
    """
    check_int("frames", frames, 1)
    require(frames <= len(window), "frames", f"at most {len(window)}, which is how many there are", frames)
    return [window[number * len(window) // frames] for number in range(frames)]


def by_rate(window: range, ticks: Ticks, fps: float | Fraction, time_base: Fraction) -> list[int]:
    """Return the frames on screen 0, 1/fps, 2/fps, ... seconds after the first of the window, each of them once.

    Where the rate of the clip varies, a frame that stays on screen for several of these moments is taken once, so there
    may be fewer frames than seconds times ``fps``.

    Args:
        window: the frames to choose from, at least one.
        ticks: when each frame of the clip appears, strictly ascending.
        fps: frames per second, at most the clip's own mean rate over the window.
        time_base: seconds a tick.

    Raises:
        TypeError: ``fps`` is not a number.
        ValueError: it is not positive, or above the clip's own.
    """
    rate = check_positive("fps", fps)
    first, last = int(ticks[window[0]]), int(ticks[window[-1]])
    if len(window) > 1:
        own = Fraction(len(window) - 1, last - first) / time_base
        # A clock of milliseconds cannot hold 1/30 s; half a percent is its rounding, not a faster rate.
        require(rate <= own * Fraction(201, 200), "fps", f"at most {float(own):.4g}, the rate of the clip", fps)
    step = 1 / (rate * time_base)
    # Grace for times that the container rounded up, by less than would reach another frame.
    grace = Fraction(1, 1 if last - first >= 4 * (len(window) - 1) else 2)
    chosen = [window[0]]
    for number in range(1, int((last - first + grace) / step) + 1):
        moment = first + int(number * step + grace)
        index = min(bisect_right(ticks, moment) - 1, window[-1])
        if index > chosen[-1]:
            chosen.append(index)
    return chosen


def key_frames(window: range, keys: Ticks) -> list[int]:
    """Return the key frames of a window.

    Args:
        window: the frames to choose from.
        keys: indices of the clip's key frames, ascending.

    Raises:
        ValueError: there is none in the window.
    """
    found = [int(keys[place]) for place in range(bisect_left(keys, window.start), bisect_left(keys, window.stop))]
    require(bool(found), "keyframes", "asked for where there is a key frame: the window has none", True)
    return found


def explicit(length: int, indices: Sequence[int]) -> list[int]:
    """Return a list of indices as it was given: in any order, and a frame as often as it is named.

    Raises:
        TypeError: ``indices`` is not a sequence of integers.
        ValueError: it is empty, or an index is below zero or not below ``length``.
    """
    check_sequence("indices", indices)
    require(len(indices) > 0, "indices", "a list with one index at least", indices)
    return [check_int(f"indices[{place}]", index, 0, length - 1) for place, index in enumerate(indices)]


def window(ticks: Ticks, start: int | None, end: int | None) -> range:
    """Return the frames that appear at ``start`` or later and before ``end``; empty where none does.

    Args:
        ticks: when each frame of the clip appears, strictly ascending.
        start: ticks; None for the first frame.
        end: ticks; None for the end of the clip.
    """
    first = 0 if start is None else bisect_left(ticks, start)
    return range(first, len(ticks) if end is None else bisect_left(ticks, end))
