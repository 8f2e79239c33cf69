"""A process that reads for this one, and is gone afterwards: a request goes in, a line of JSON and bytes come out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any


class ChildError(Exception):
    """A child ended without an answer; `took_too_long` says whether that was for its time."""

    def __init__(self, message: str, took_too_long: bool = False) -> None:
        super().__init__(message)
        self.took_too_long = took_too_long


class Child:
    """A running child; see `running`."""

    def __init__(self, process: subprocess.Popen[bytes], timer: Timer | None, limit: float | None) -> None:
        self._process, self._timer, self._limit = process, timer, limit

    def ask(self, request: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
        """Send the request, and the bytes of arrays after it."""
        if self._process.stdin is None:
            raise ChildError("no pipe to its process")
        with suppress(BrokenPipeError):  # it is dead already, and its answer is empty
            for part in (json.dumps(request).encode() + b"\n", *(array.data.cast("B") for array in arrays)):
                rest = memoryview(part)
                while rest:
                    rest = rest[self._process.stdin.write(rest) :]
            self._process.stdin.close()

    def line(self) -> Any:
        """Return the next line of the answer.

        Raises:
            ChildError: there is none.
        """
        head = bytearray()
        while not head.endswith(b"\n") and (byte := self._read(1)):
            head += byte
        if not head.endswith(b"\n"):
            raise self._death()
        return json.loads(head)

    def fill(self, view: memoryview) -> None:
        """Fill bytes with the next ones of the answer.

        Raises:
            ChildError: there are fewer.
        """
        while view:
            got = self._process.stdout.readinto(view)  # type: ignore[union-attr]
            if not got:
                raise self._death()
            view = view[got:]

    def _read(self, count: int) -> bytes:
        return self._process.stdout.read(count) if self._process.stdout is not None else b""

    def _death(self) -> ChildError:
        code = self._process.wait()
        if self._timer is not None and self._timer.finished.is_set():
            return ChildError(f"took longer than {self._limit:g} s", took_too_long=True)
        return ChildError(f"its process ended without an answer ({'signal' if code < 0 else 'exit code'} {abs(code)})")


@contextmanager
def running(
    script: Path, options: list[str], limit: float | None, request: dict[str, Any], arrays: Sequence[Any] = ()
) -> Iterator[Child]:
    """Run a script in a child that got a request, and is killed after ``limit`` seconds, or when the block ends."""
    command = [sys.executable, *options, str(script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as process:
        timer = None
        try:
            if limit is not None:
                timer = Timer(limit, process.kill)
                timer.daemon = True
                timer.start()
            child = Child(process, timer, limit)
            child.ask(request, arrays)
            yield child
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
            process.kill()
