"""Which backends are here, and which of them reads a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitcop_core.checks import check_choice
from vitcop_video.readers import decord_reader, library, torchcodec_reader
from vitcop_video.readers.base import Backend, BackendError, Deadline
from vitcop_video.readers.index import Index


def _with_pyav(index: Index, frames: Sequence[int], deadline: Deadline) -> NDArray[np.uint8]:
    from vitcop_video.readers.pyav_reader import decode  # PyAV may be missing where nothing is decoded

    return decode(index, frames, deadline)


PYAV = Backend("pyav", missing=library.missing, refusal=lambda index: None, decode=_with_pyav)

BACKENDS: dict[str, Backend] = {each.name: each for each in (PYAV, decord_reader.BACKEND, torchcodec_reader.BACKEND)}
"""By name, in the order in which "auto" prefers them. PyAV reads every file, so "auto" never gets past it.

It comes first because it is the fastest of them here for few frames and for many, as the reading benchmark shows, and
because it needs no second process to be safe.
"""


def backend_status() -> dict[str, str | None]:
    """Return every backend by name: None where it can run on this machine, or why it cannot.

    The first one that can is what ``backend="auto"`` uses.
    """
    return {name: backend.missing() for name, backend in BACKENDS.items()}


def choose(name: str) -> Backend:
    """Return the backend of a name, or for "auto" the preferred one that is here.

    Raises:
        ValueError: there is none of that name, or it cannot run here; or PyAV is missing.
    """
    check_choice("backend", name, ("auto", *BACKENDS))
    library.require_library()  # every file's index is read with it, whatever decodes
    if name == "auto":
        return next(backend for backend in BACKENDS.values() if backend.missing() is None)
    if reason := BACKENDS[name].missing():
        raise ValueError(f"backend must be one that can run here, got {name!r}: {reason}")
    return BACKENDS[name]


def decode(
    backend: Backend, index: Index, frames: Sequence[int], deadline: Deadline
) -> tuple[NDArray[np.uint8], str, str | None]:
    """Return the upright frames of any numbers in any order.

    Returns:
        [F, H, W, 3] uint8; the name of the backend that decoded them; why it was not the one asked for, or None.

    Raises:
        VideoError: the file is damaged where the frames are, or the time is over.
    """
    unique, places = np.unique(np.asarray(frames, dtype=np.int64), return_inverse=True)
    ascending = unique.tolist()
    reason = backend.refusal(index)
    if reason is None:
        try:
            return _spread(backend.decode(index, ascending, deadline), places), backend.name, None
        except BackendError as error:
            reason = str(error)
    pixels = PYAV.decode(index, ascending, deadline)
    return (
        _spread(pixels, places),
        PYAV.name,
        f"{backend.name}: {reason.removeprefix(backend.name + ': ')}",
    )


def _spread(pixels: NDArray[np.uint8], places: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Put frames at their places; copy only where the order or a repeat asks for one."""
    return pixels if np.array_equal(places, np.arange(len(pixels))) else pixels[places]
