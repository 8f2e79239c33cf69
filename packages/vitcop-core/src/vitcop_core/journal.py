"""A file of JSON lines that grows while long work goes on, and that a kill leaves whole."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from vitcop_core.files import BINARY, NO_WAIT, StrPath, check_writable, read_bytes, told_of, write_whole

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]


class Journal:
    """A file of JSON lines that grows while work goes on, and gets its name when it is whole.

    Until then its lines are in ``NAME.partial`` beside it. After a kill they are still there, whole: `lines_of` reads
    them, and a journal that starts with them goes on where the other stopped.

    As a context manager it is closed at the end, finished or not.

    Args:
        path: The final name.
        lines: What the journal starts with, in place of what an earlier one left.

    Raises:
        BlockingIOError: Another process is writing this journal.
        OSError: It cannot be written.
    """

    def __init__(self, path: StrPath, lines: Iterable[Any] = ()) -> None:
        self.path, self.partial = Path(path), partial_path(path)
        check_writable(path)
        with told_of(self.partial), _open_locked(self.partial):
            with write_whole(self.partial) as fresh:
                fresh.writelines(map(_line, lines))
            self._stream = _open_locked(self.partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, *lines: Any) -> None:
        """Append lines; they are on the disk when this returns.

        Raises:
            OSError: They cannot be written. What was written of them is taken back.
        """
        with told_of(self.partial):
            whole = self._stream.seek(0, os.SEEK_END)
            try:
                rest = memoryview(b"".join(map(_line, lines)))
                while rest:  # one write is enough, but on a disk that is nearly full
                    rest = rest[self._stream.write(rest) :]
                os.fsync(self._stream.fileno())
            except OSError:
                self._stream.truncate(whole)
                raise

    def finish(self, lines: Iterable[Any] | None = None) -> None:
        """Give the journal its final name.

        Args:
            lines: What it holds then, where that is not what was added.

        Raises:
            OSError: It cannot be written.
        """
        with write_whole(self.path) as stream:
            stream.writelines([self.partial.read_bytes()] if lines is None else map(_line, lines))
        self.partial.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file; without `finish` before, its lines stay in ``NAME.partial``."""
        self._stream.close()


def partial_path(path: StrPath) -> Path:
    """Return where a `Journal` of that name keeps its lines until it is whole."""
    return Path(path).with_name(Path(path).name + ".partial")


def lines_of(path: StrPath, limit: int) -> list[Any]:
    """Read the lines of a `Journal`, finished or not; a line that a full disk cut off is left out.

    Args:
        path: A journal, or its ``NAME.partial``.
        limit: Bytes it may have.

    Raises:
        OSError: As for `read_bytes`.
    """
    found = []
    for line in read_bytes(path, limit).split(b"\n")[:-1]:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return found


def _line(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _open_locked(path: Path) -> io.FileIO:
    """Return a file to append to, made if it is not there, that no other process has opened this way."""
    check_writable(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_WAIT | BINARY
    stream = io.FileIO(os.open(path, flags, 0o666), "ab")
    if fcntl is not None:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.fstat(stream.fileno()).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        except OSError:  # a file system without locks
            is_ours = True
        if not is_ours:
            stream.close()
            raise BlockingIOError(errno.EAGAIN, "another process is writing it", str(path))
    return stream
