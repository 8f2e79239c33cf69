"""PyAV, which every file is opened with: whether it is here, and what differs between its versions."""

from __future__ import annotations

from functools import cache
from typing import Any

from vitcop_video.readers.base import VideoError

OLDEST = 15
"""The first version of PyAV that these readers were tried with."""


@cache
def missing() -> str | None:
    """Return why PyAV cannot be used; None where it can."""
    try:
        import av
    except Exception as error:  # not installed, or built for another system: it fails in ways of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"PyAV cannot be imported ({reason})"
    version = str(getattr(av, "__version__", "0"))
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < OLDEST:
        return f"PyAV must be version {OLDEST} or newer, got {version}"
    return None


def require_library() -> None:
    """Raise `VideoError` where PyAV is missing or too old."""
    if reason := missing():
        raise VideoError(f"path must be read with PyAV, got none: {reason}; pip install 'av>={OLDEST}'")


def promised_entries(stream: Any) -> int:
    """Return how many packets the index of a container lists; 0 where PyAV does not tell."""
    entries = getattr(stream, "index_entries", None)  # from PyAV 18 on
    return 0 if entries is None else len(entries)


def field_order(stream: Any) -> int:
    """Return how a stream says that its fields follow each other: 0 where none tells, 1 for none."""
    return int(getattr(stream.codec_context, "field_order", 0))  # from PyAV 16 on
