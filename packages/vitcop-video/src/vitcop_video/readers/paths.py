"""Which paths are opened: regular files on this machine, and nothing that could block."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vitcop_video.readers.base import VideoError


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path to a regular file that can be read: not an address, and nothing that could block.

    Raises:
        TypeError: ``path`` is not a path.
        FileNotFoundError, IsADirectoryError, PermissionError: as they say.
        VideoError: it is an address, a pipe, a device, or empty.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path must be a string or a path, got {path!r} ({type(path).__name__})") from None
    try:
        is_name = "\0" not in text and os.fsdecode(os.fsencode(text)) == text
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise VideoError(f"path must be the name of a file, got {path!r}")
    # Absolute, so that FFmpeg sees no protocol in a name such as "concat:a". O_NONBLOCK: a pipe has no writer.
    full = Path(text).absolute()
    try:
        if "://" in text and not full.exists():
            raise VideoError(f"path must be a file on this machine, not an address, got {text}")
        _check_regular(full, full.stat())
        descriptor = os.open(full, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"path must be an existing file, got {text}") from None
    except PermissionError:
        raise PermissionError(f"path must be a file that you may read, got {text}") from None
    except VideoError:
        raise
    except IsADirectoryError:
        raise IsADirectoryError(f"path must be a file, got the folder {text}") from None
    except OSError as error:
        raise VideoError(f"path must be a file that can be read, got {text}: {error.strerror}") from error
    os.close(descriptor)
    return full


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"path must be a regular file, got {path}, a pipe, socket or device")
    if status.st_size == 0:
        raise VideoError(f"path must be a video that can be read, got {path}, which is empty")
