"""Workers and who watches them: a trial that ends its process, or does not end, is a fault and stops nothing else."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ordeal.trials import LOG

LIMIT = 10.0
"""Seconds of a trial. One that takes longer is tried again by itself, when the machine may be less busy."""

PATIENCE = 60.0
"""Seconds on the clock that the second try may take; it may take `LIMIT` seconds of the processor."""

PREPARATION = 600.0
_TICK = 0.5


@dataclass(frozen=True)
class Outcome:
    """What the trial of a number came to: accepted, refused, or a fault and which one."""

    number: int
    outcome: str
    seconds: float = LIMIT
    bytes: int = 0
    message: str = ""
    trace: str = ""


class Worker:
    """A process that tries inputs of one kind."""

    def __init__(self, kind: str, seed: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ordeal-"))
        command = [sys.executable, "-W", "ignore", "-m", "ordeal.worker", kind, str(seed), str(self._folder)]
        # A group of its own, so that children of a process that has to be killed go with it.
        with (self._folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0, start_new_session=True
            )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._rest = b""
        answer = self._answer(PREPARATION, PREPARATION)
        if answer is None or "ready" not in answer:
            raise RuntimeError(f"the worker for {kind} did not start: {self.log()}")

    def ask(self, number: int, processor: float, clock: float) -> dict[str, Any] | None:
        """Tries an input; None where no answer came in time, or the process ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n".encode())
        return self._answer(processor, clock)

    def _answer(self, processor: float, clock: float) -> dict[str, Any] | None:
        start, spent = time.monotonic(), self._spent()
        while b"\n" not in self._rest:
            if self._selector.select(_TICK):
                part = os.read(self._process.stdout.fileno(), 2**16)  # type: ignore[union-attr]
                if not part:
                    return None
                self._rest += part
            elif time.monotonic() - start > clock or self._spent() - spent > processor:
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _spent(self) -> float:
        """Seconds of the processor, with those of children that ended."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text()
        except FileNotFoundError:
            return 0.0
        fields = text.rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> int | None:
        """Ends the process with its children; returns the signal that had ended it before, or None."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        code = self._process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._selector.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return code

    def log(self) -> str:
        """What libraries printed last."""
        try:
            return (self._folder / LOG).read_bytes()[-6000:].decode(errors="replace").replace("\0", "")
        except OSError:
            return ""


class Hand:
    """Has inputs tried, one after the other, in as many processes as it takes; keeps one from call to call."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kind = ""
        self._worker: Worker | None = None

    def run(self, kind: str, numbers: Iterable[int]) -> Iterator[Outcome]:
        """Tries inputs of one kind."""
        if kind != self._kind:
            self.close()
            self._kind = kind
        for number in numbers:
            answer = self._try(number)
            fields = {
                name: answer[name] for name in ("outcome", "seconds", "bytes", "message", "trace") if name in answer
            }
            yield Outcome(number, **fields)
            if answer.get("is_spent"):
                self.close()

    def _try(self, number: int) -> dict[str, Any]:
        self._worker = self._worker or Worker(self._kind, self._seed)
        answer = self._worker.ask(number, PATIENCE, LIMIT)
        if answer is not None:
            return answer
        trace, code = self._worker.log(), self._worker.close()
        self._worker = None
        if code is None:  # it was still at work
            again = Worker(self._kind, self._seed)
            answer = again.ask(number, LIMIT, PATIENCE)
            trace, code = again.log(), again.close()
            if answer is not None:
                return answer
        message = f"took more than {LIMIT:g} s" if code is None else f"ended its process ({ending(code)})"
        return {"outcome": "fault", "message": message, "trace": trace}

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
