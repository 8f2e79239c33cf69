"""What a model is asked about: pictures, and clips with the options that say which of their frames."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcop_llava.tools.cli.errors import UserError, mistakes
from vitcop_llava.tools.cli.output import print_note, progress

if TYPE_CHECKING:
    from PIL import Image

    from vitcop_llava.tools.media.video_support import Clip, Sampling

    Medium = Image.Image | Clip

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_PANEL = "Which frames of a video"
Frames = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How many frames, at equal distances. Default: 8, or all if there are fewer.",
        rich_help_panel=_PANEL,
        min=1,
        max=10**6,
    ),
]
Fps = Annotated[float | None, typer.Option(metavar="RATE", help="How many frames a second.", rich_help_panel=_PANEL)]
Indices = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="The numbers of the frames, counted from 0.", rich_help_panel=_PANEL),
]
KeyFrames = Annotated[
    bool, typer.Option("--key-frames", metavar="", help="The frames that are stored whole.", rich_help_panel=_PANEL)
]
Start = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Leave out frames that appear earlier.", rich_help_panel=_PANEL)
]
End = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Leave out frames that appear at this time or later.", rich_help_panel=_PANEL),
]
TimeLimit = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="How long reading one file may take; 0 for no limit.", rich_help_panel=_PANEL),
]
Reader = Annotated[str, typer.Option(help="The decoder: auto, pyav, decord or torchcodec.", rich_help_panel=_PANEL)]


def parse_sampling(
    frames: int | None,
    fps: float | None,
    indices: str | None,
    key_frames: bool,
    start: float | None,
    end: float | None,
    reader: str,
    time_limit: float = 10.0,
) -> Sampling:
    """Return what the options say.

    Raises:
        UserError: for two that exclude each other, or a list that is none.
    """
    from vitcop_llava.tools.media.video_support import Sampling

    given = {"--frames": frames, "--fps": fps, "--indices": indices, "--key-frames": key_frames or None}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{named[0]} must be the only one of {', '.join(given)}, got {' and '.join(named)}")
    if indices is not None and (start is not None or end is not None):
        raise UserError("--indices must not be given with --start or --end")
    numbers = None
    if indices is not None:
        parts = [part.strip() for part in indices.split(",")]
        if not all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts):
            raise UserError(f"--indices must be frame numbers with commas between them (0,30,60), got {indices!r}")
        numbers = tuple(map(int, parts))
    if not 0 <= time_limit <= 1_000_000:
        raise UserError(f"--time-limit must be from 0 to 1000000 seconds, 0 for no limit, got {time_limit:g}")
    return Sampling(frames, fps, numbers, key_frames, start, end, reader, time_limit or None)


def has_video(paths: Sequence[Path]) -> bool:
    """Return whether a video is among some files, by their names."""
    from vitcop_llava.tools.media.video_support import is_video

    return any(map(is_video, paths))


def open_media(
    paths: Sequence[Path], sampling: Sampling | None = None, note: Callable[[str], None] = print_note
) -> list[Medium]:
    """Read pictures, and frames of videos.

    Args:
        paths: files; one with a video's name is read as a video.
        sampling: which frames; None for the usual.
        note: hears what is worth a remark, such as that an animated picture stands for its first frame.

    Raises:
        UserError: for a file that cannot be used, or options for videos where there is none.
    """
    from vitcop_llava.tools.media.video_support import Sampling, is_video, need_support

    if not has_video(paths) and (option := changed_option(sampling or Sampling())):
        raise UserError(f"{option} must be used with videos, got {', '.join(map(str, paths))}")
    found: list[Medium] = []
    for path in paths:
        check_file(path)
    for path in paths:
        with mistakes(options={"backend": "--reader", "time_limit": "--time-limit"}):
            if is_video(path):
                with progress(f"reading {path.name}"):
                    found.append(need_support().read_clip(path, sampling or Sampling()))
            else:
                found.append(_read_image(path, note))
    return found


def _read_image(path: Path, note: Callable[[str], None]) -> Image.Image:
    from vitcop_llava.tools.media.images import FirstFrameWarning, read_image

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FirstFrameWarning)
        image = read_image(path)
    for warning in caught:
        note(str(warning.message))
    return image


def check_file(path: Path) -> None:
    """Raise unless there is a file of that name: asked of all before anything slow is imported or read.

    Raises:
        UserError: where there is none.
    """
    from vitcop_llava.tools.media.video_support import is_video

    kind = "video" if is_video(path) else "image"
    try:
        status = path.stat()
    except FileNotFoundError:
        if _ADDRESS.match(str(path)):
            raise UserError(f"{kind} must be a file on this machine, got the address {path}") from None
        raise UserError(f"{kind} must be an existing file, got {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(
            f"{kind} must be a file that can be read, got {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if S_ISDIR(status.st_mode):
        raise UserError(f"{kind} must be a file, got the folder {path}")


def open_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read pictures alone.

    Raises:
        UserError: for one that cannot be used.
    """
    for path in paths:
        check_file(path)
    with mistakes():
        return [_read_image(path, print_note) for path in paths]


def clips_of(media: Sequence[Medium]) -> list[Clip]:
    """Return the clips among them."""
    from vitcop_llava.tools.media.video_support import Clip

    return [each for each in media if isinstance(each, Clip)]


def clip_fields(clip: Clip) -> dict[str, Any]:
    """Return which frames were looked at, for --json."""
    return {
        "path": str(clip.path),
        "frames": clip.length,
        "indices": clip.indices.tolist(),
        "seconds": [round(second, 6) for second in clip.seconds.tolist()],
        "reader": clip.reader,
        "note": clip.note,
    }


def describe_clip(clip: Clip) -> str:
    """Return which frames were looked at, for people."""
    times = [f"{second:.2f}" for second in clip.seconds]
    shown = ", ".join(times if len(times) <= 16 else [*times[:8], "...", *times[-4:]])
    return f"{clip.path}: {len(times)} of {clip.length} frames, at {shown} s ({clip.reader})"


def changed_option(sampling: Sampling) -> str | None:
    """Return the option that the first setting other than the usual came from; None where all are as usual."""
    names = {"keyframes": "--key-frames", "backend": "--reader", "time_limit": "--time-limit"}
    usual = vars(type(sampling)())
    changed = (name for name, value in vars(sampling).items() if value != usual[name])
    return next((names.get(name, f"--{name}") for name in changed), None)
