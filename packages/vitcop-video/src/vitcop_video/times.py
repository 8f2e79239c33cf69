"""Arguments that are times: checked, and turned into ticks of a clip's clock."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vitcop_core.shown import shown

MAX_TIME_LIMIT = 1_000_000
"""Seconds: what timers of every system can wait for."""


def check_time_limit(value: object) -> float | None:
    """Return a limit of time as a number of seconds; None for none.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not positive, or more than a million seconds.
    """
    if value is None:
        return None
    expected = f"a number of seconds in (0, {MAX_TIME_LIMIT}], or None for no limit"
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"time_limit must be {expected}, got {shown(value)} ({type(value).__name__})")
    if not 0 < value <= MAX_TIME_LIMIT:
        raise ValueError(f"time_limit must be {expected}, got {shown(value)}")
    return float(value)


def check_seconds(name: str, value: object) -> float | Fraction | None:
    """Return a moment in seconds, which may be any finite number; None for none.

    Raises:
        TypeError: it is not a number.
        ValueError: it is infinite or NaN.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{name} must be a number of seconds, got {shown(value)} ({type(value).__name__})")
    if isinstance(value, float) and not math.isfinite(value):  # only a float can be infinite, or overflow in isfinite
        raise ValueError(f"{name} must be a finite number of seconds, got {value!r}")
    return value


def ticks_at(seconds: float | Fraction | None, ticks: NDArray[np.int64], time_base: Fraction) -> int | None:
    """Return the first tick at or after a time: 0.5 s falls on a frame whose time was rounded to 0.5 s."""
    if seconds is None:
        return None
    exact = Fraction(seconds).limit_denominator(1_000_000) / time_base
    return int(ticks[0]) + math.ceil(exact)
