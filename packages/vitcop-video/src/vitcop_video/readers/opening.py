"""Opening a file: what container it is, whether it is whole, and in which process it is read."""

from __future__ import annotations

import os
from pathlib import Path

from vitcop_video.readers.base import Deadline, VideoError
from vitcop_video.readers.confined import scan_confined
from vitcop_video.readers.forms import recognize
from vitcop_video.readers.index import Index
from vitcop_video.readers.paths import check_path
from vitcop_video.readers.scan import Opening, UnplainError, scan
from vitcop_video.readers.whole import cut_short


def read_index(path: str | os.PathLike[str], deadline: Deadline) -> Index:
    """Read the packets of a file, and decode its first frame.

    A file whose container is understood to the last byte that counts is read in this process, any other in one whose
    memory is limited.

    Raises:
        TypeError, FileNotFoundError, IsADirectoryError, PermissionError: as `check_path`.
        VideoError: it is not a video that can be read, it is damaged or truncated, or takes too much time or memory.
    """
    full = check_path(path)
    try:
        form = recognize(full, deadline)
        reason = None if form.name is None else cut_short(full, form, deadline)
    except OSError as error:
        raise VideoError(f"path must be a file that can be read, got {full}: {error.strerror}") from error
    if reason:
        raise VideoError(f"path must be a whole video, got {full}, which is truncated: {reason}")
    if form.is_plain:
        try:
            return scan(Opening(full, form.name, is_confined=False), deadline)
        except UnplainError:
            pass
    return scan_confined(Path(full), form.name, deadline)
