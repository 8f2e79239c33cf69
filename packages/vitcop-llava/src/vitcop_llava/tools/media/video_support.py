"""What commands need of vitcop-video, which is above this package and offers itself through an entry point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitcop_llava.tools.demo.questions import Question

ENTRY_POINTS = "vitcop.video"
"""The group of entry points under which an installed package offers a `VideoSupport`, by the name ``support``."""

SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # as readers know them
)
"""Names of files that are taken for videos; any other is taken for a picture."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video, F of them.

    Attributes:
        path: where it is.
        frames: ``[F, H, W, 3]`` uint8, RGB, upright.
        seconds: ``[F]`` float64: when each appears.
        indices: ``[F]`` int64: which frame of the video each is.
        length: how many frames the video has.
        reader: what decoded them.
        note: why another reader than the one asked for did, or None.
    """

    path: Path
    frames: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    indices: NDArray[np.int64]
    length: int
    reader: str
    note: str | None = None


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at; at most one of the first four is given, and none means eight, or all where
    there are fewer.

    Attributes:
        frames: so many, at equal distances.
        fps: so many a second.
        indices: these.
        keyframes: those that are stored whole.
        start, end: seconds, a window; the end is left out.
        backend: what decodes.
        time_limit: seconds that opening and reading a file may take; None for no limit.
        at_most: whether a video with fewer frames than ``frames`` is looked at with all of them, and not refused.
    """

    frames: int | None = None
    fps: float | None = None
    indices: tuple[int, ...] | None = None
    keyframes: bool = False
    start: float | None = None
    end: float | None = None
    backend: str = "auto"
    time_limit: float | None = 10.0
    at_most: bool = False


class VideoSupport(Protocol):
    """What vitcop-video offers."""

    @property
    def demo_folder(self) -> Path:
        """The demo model for videos."""

    def read_clip(self, path: Path, sampling: Sampling) -> Clip:
        """Return the frames of a file; raise ValueError or TypeError, which names the file, for one that cannot be
        read.
        """

    def processor(self, name: str) -> Any:
        """Return the processor of a checkpoint for videos; raises OSError or ValueError where it has none."""

    def readers(self) -> dict[str, str | None]:
        """Return what can decode, in the order of preference: None each, or why it cannot."""

    def write_demo(self, seed: int, path: Path, *, overwrite: bool = True) -> Sequence[Question]:
        """Draw a clip that the demo model knows into a file, whole or not at all; return the questions about it.

        Raises OSError where it cannot be written, or is there and must not be replaced.
        """


def find_support() -> VideoSupport | None:
    """Return what the installed vitcop-video offers; None without it."""
    for entry in entry_points(group=ENTRY_POINTS, name="support"):
        return cast("VideoSupport", entry.load())
    return None


def need_support() -> VideoSupport:
    """Return the same.

    Raises:
        ValueError: vitcop-video is not installed.
    """
    support = find_support()
    if support is None:
        raise ValueError("video must be read by vitcop-video, got no such package; pip install vitcop-video")
    return support


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its name."""
    return path.suffix.lower() in SUFFIXES
