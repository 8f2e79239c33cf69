"""One way to write a file and one way to read it, for every command and function of all packages.

A file is written whole or not at all, and only regular files of bounded size are read. Every failure is an `OSError`
with the caller's path in it. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

_PREFIX, _SUFFIX = ".vitcop-", ".unfinished"
_BINARY = getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe must not wait for its other end


@contextmanager
def write_whole(path: StrPath, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Give a stream to write to, and put what was written under ``path`` when the block ends without an error.

    The content goes to a temporary file in the same folder. It is flushed to the disk and then takes the place of
    ``path`` in one step, so a reader sees the old file or the new one. An error or a kill leaves ``path`` as it was.
    What a killed process left in the folder is removed by the next write there.

    Args:
        path: A file in a folder that exists. A symbolic link is followed. A new file gets the permissions that the
            umask allows; one that is replaced passes on its own.
        overwrite: Whether a file that is there may be replaced.

    Yields:
        A binary stream that can be written, read and sought.

    Raises:
        FileExistsError: The file is there, and ``overwrite`` is false.
        OSError: The folder is missing, ``path`` is no regular file, the disk is full, and so on.
    """
    with _told_of(path):
        target, mode = _target(path, overwrite)
        _remove_abandoned(target.parent)
        descriptor, unfinished = _create_beside(target)
        try:
            with os.fdopen(descriptor, "w+b") as stream:
                yield stream
                stream.flush()
                if mode is not None and hasattr(os, "fchmod"):
                    with suppress(PermissionError):  # some file systems have no permissions
                        os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
                if fcntl is not None:  # while the lock is held: no other process may take it for abandoned
                    _move(unfinished, target, overwrite)
            if fcntl is None:  # Windows moves closed files only
                _move(unfinished, target, overwrite)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync_folder(target.parent)


def write_bytes(path: StrPath, content: bytes, *, overwrite: bool = True) -> None:
    """Write ``content`` as `write_whole` does.

    Raises:
        OSError: As for `write_whole`.
    """
    with write_whole(path, overwrite=overwrite) as stream:
        stream.write(content)


def write_text(path: StrPath, content: str, *, overwrite: bool = True) -> None:
    """Write ``content`` as UTF-8, as `write_whole` does. What UTF-8 cannot hold is written with backslashes.

    Raises:
        OSError: As for `write_whole`.
    """
    write_bytes(path, content.encode("utf-8", "backslashreplace"), overwrite=overwrite)


def write_json(path: StrPath, content: Any, *, overwrite: bool = True) -> None:
    """Write ``content`` as JSON with an indent of one, as `write_whole` does.

    Raises:
        TypeError, ValueError: ``content`` is not JSON; NaN and infinity are not.
        OSError: As for `write_whole`.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", overwrite=overwrite)


def open_regular(path: StrPath) -> BinaryIO:
    """Open a regular file to read it. A pipe, socket or device is refused without being opened.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: As they say.
        OSError: ``path`` is no regular file, or cannot be opened.
    """
    with _told_of(path):
        # Asked before opening, since opening a device can have effects, and after, since the file may have been
        # replaced in between.
        _check_regular(Path(path).stat(), path)
        stream = os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT | _BINARY), "rb")
        try:
            _check_regular(os.fstat(stream.fileno()), path)
        except OSError:
            stream.close()
            raise
        return stream


def read_bytes(path: StrPath, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        OSError: As for `open_regular`; or the file is larger, with ``errno.EFBIG``.
    """
    with _told_of(path), open_regular(path) as stream:
        content = stream.read(limit + 1)
        if len(content) > limit:
            raise OSError(errno.EFBIG, f"must have at most {_size(limit)}, and has more", os.fspath(path))
        return content


class Journal:
    """A file of JSON lines that grows while work goes on, and gets its name when it is whole.

    Until then its lines are in ``NAME.partial`` beside it. After a kill they are still there, whole: `lines_of` reads
    them, and a journal that starts with them goes on where the other stopped.

    Args:
        path: The final name.
        lines: What the journal starts with, in place of what an earlier one left.

    Raises:
        BlockingIOError: Another process is writing this journal.
        OSError: It cannot be written.
    """

    def __init__(self, path: StrPath, lines: Iterable[Any] = ()) -> None:
        self.path, self.partial = Path(path), partial_path(path)
        with _told_of(self.path):
            _target(self.path, overwrite=True)
        with _told_of(self.partial), _open_locked(self.partial):
            with write_whole(self.partial) as fresh:
                fresh.writelines(map(_line, lines))
            self._stream = _open_locked(self.partial)

    def add(self, *lines: Any) -> None:
        """Append lines; they are on the disk when this returns.

        Raises:
            OSError: They cannot be written. What was written of them is taken back.
        """
        with _told_of(self.partial):
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
        if lines is None:
            with _told_of(self.path):
                target, _ = _target(self.path, overwrite=True)
                _move(self.partial, target, overwrite=True)
                _sync_folder(target.parent)
        else:
            with write_whole(self.path) as stream:
                stream.writelines(map(_line, lines))
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


@contextmanager
def _told_of(path: StrPath) -> Iterator[None]:
    """Inside, the system's errors about a file or its temporary name the file as the caller wrote it."""
    name = os.fspath(path)
    try:
        if "\0" in name or os.fsdecode(os.fsencode(name)) != name:
            raise ValueError
    except ValueError:  # UnicodeEncodeError is one
        raise OSError(errno.EINVAL, "must be a name that a file can have", name) from None
    try:
        yield
    except OSError as error:
        ours = error.filename is None or Path(error.filename).parent == Path(os.path.realpath(name)).parent
        if error.errno is None or error.filename == name or not ours:
            raise
        raise OSError(error.errno, error.strerror or str(error), name) from error


def _target(path: StrPath, overwrite: bool) -> tuple[Path, int | None]:
    """The file to replace, and its permissions where it is there."""
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "is there already", os.fspath(path))
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {target.parent}", os.fspath(path))
    try:
        status = target.stat()
    except FileNotFoundError:
        return target, None
    _check_regular(status, path)
    return target, stat.S_IMODE(status.st_mode)


def _check_regular(status: os.stat_result, path: StrPath) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "must be a file, not a folder", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "must be a regular file, not a pipe, socket or device", os.fspath(path))


def _create_beside(target: Path) -> tuple[int, Path]:
    """An open, locked file of a name of its own in the folder of ``target``."""
    while True:
        unfinished = target.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        if fcntl is None:
            return descriptor, unfinished
        with suppress(OSError):  # a file system without locks: then nothing is taken for abandoned there either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if unfinished.exists():
            return descriptor, unfinished
        os.close(descriptor)  # another process took it for abandoned before it was locked


def _remove_abandoned(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a folder: those that nobody has locked."""
    if fcntl is None:
        return
    for unfinished in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        with suppress(OSError):  # locked by the process that writes it, gone already, or not ours
            descriptor = os.open(unfinished, os.O_RDWR | _NO_WAIT | getattr(os, "O_NOFOLLOW", 0))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unfinished.unlink()
            finally:
                os.close(descriptor)


def _open_locked(path: Path) -> io.FileIO:
    """A file to append to, made if it is not there, that no other process has opened this way."""
    _target(path, overwrite=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_WAIT | _BINARY
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


def _move(unfinished: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        unfinished.replace(target)
        return
    try:
        os.link(unfinished, target)  # unlike a rename, it fails where a file came in the meantime
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "is there already", str(target)) from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(errno.EEXIST, "is there already", str(target)) from None
        unfinished.rename(target)


def _sync_folder(folder: Path) -> None:
    """Makes a new name last through a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"
