"""One way to write a file and one way to read it, for every command and function of all packages.

A file is written whole or not at all, and only regular files of bounded size are read. Every failure is an `OSError`
with the caller's path in it. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

_PREFIX, _SUFFIX = ".vitcop-", ".unfinished"
BINARY = getattr(os, "OBINARY", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe must not wait for its other end


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
        OSError: The folder is missing, ``path`` is not a regular file, the disk is full, and so on.
    """
    with told_of(path):
        target, mode = check_writable(path, overwrite=overwrite)
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


def check_writable(path: StrPath, *, overwrite: bool = True) -> tuple[Path, int | None]:
    """Check, before any work, that `write_whole` could begin.

    Returns:
        The file behind symbolic links, and its permissions where it is there.

    Raises:
        OSError: As for `write_whole`.
    """
    with told_of(path):
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "is there already", os.fspath(path))
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            folder = target.parent if Path(path).is_symlink() else Path(path).parent
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder}", os.fspath(path))
        try:
            status = target.stat()
        except FileNotFoundError:
            return target, None
        _check_regular(status, path)
        return target, stat.S_IMODE(status.st_mode)


def open_regular(path: StrPath) -> BinaryIO:
    """Open a regular file to read it. A pipe, socket or device is refused without being opened.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: As they say.
        OSError: ``path`` is not a regular file, or cannot be opened.
    """
    with told_of(path):
        # Asked before opening, since opening a device can have effects, and after, since the file may have been
        # replaced in between.
        _check_regular(Path(path).stat(), path)
        stream = os.fdopen(os.open(path, os.O_RDONLY | NO_WAIT | BINARY), "rb")
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
    with told_of(path), open_regular(path) as stream:
        # A buffer of the size that is asked for is made at once: never more than the file has.
        content = stream.read(min(os.fstat(stream.fileno()).st_size, limit) + 1)
        while len(content) <= limit and (rest := stream.read(min(2**16, limit + 1 - len(content)))):
            content += rest  # it grew, or is one of the system's, which say that they are empty
        if len(content) > limit:
            raise OSError(errno.EFBIG, f"must have at most {_size(limit)}, and has more", os.fspath(path))
        return content


@contextmanager
def told_of(path: StrPath) -> Iterator[None]:
    """Make errors of the system inside, about ``path`` or a temporary file beside it, name ``path`` as it is given.

    Raises:
        OSError: No file can have that name, with ``errno.EINVAL``; or what the block raises.
    """
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


def _check_regular(status: os.stat_result, path: StrPath) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "must be a file, not a folder", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "must be a regular file, not a pipe, socket or device", os.fspath(path))


def _create_beside(target: Path) -> tuple[int, Path]:
    """Return an open, locked file of a name of its own in the folder of ``target``."""
    while True:
        unfinished = target.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        if fcntl is None:
            return descriptor, unfinished
        with suppress(OSError):  # a file system without locks: then nothing is taken for abandoned there either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if unfinished.exists():
            return descriptor, unfinished
        os.close(descriptor)  # another process took it for abandoned before it was locked


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder: those that nobody has locked."""
    if fcntl is None:
        return
    for unfinished in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        with suppress(OSError):  # locked by the process that writes it, gone already, or not ours
            descriptor = os.open(unfinished, os.O_RDWR | NO_WAIT | getattr(os, "O_NOFOLLOW", 0))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unfinished.unlink()
            finally:
                os.close(descriptor)


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
    """Make a new name last through a power cut, where the system can."""
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
