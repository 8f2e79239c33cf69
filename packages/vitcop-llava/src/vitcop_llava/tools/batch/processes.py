"""Rows shared among processes with a model each; a process that is killed loses and repeats none."""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Self

from vitcop_llava.tools.batch.rows import Outcome, Row

if TYPE_CHECKING:
    from vitcop_llava.tools.batch.answerer import Answerer

Make = Callable[[str], AbstractContextManager["Answerer"]]
"""Loads a model on a device; it is pickled."""

_CONTEXT = get_context("spawn")  # CUDA does not outlive a fork
_READY = "ready"
TRIES = 2
"""How often a row may be under way when a process ends, before it is taken for the reason."""
_MOST_ENDS = 5
"""How many processes may end one after the other without an answer in between."""


class WorkerError(RuntimeError):
    """Processes end again and again."""


class Crew:
    """Processes that answer rows.

    Rows go out in chunks, and come back a batch at a time. Where a process ends by itself, another takes its place and
    what it had not answered. Rows that were under way then run alone, so that one of them that ends its process again
    gets an error, and the others their answers.

    As a context manager it ends the processes.

    Args:
        make: Makes what answers, in each process.
        devices: One for each process.
        threads: Of torch, in each process; None leaves them alone.
    """

    def __init__(self, make: Make, devices: Sequence[str], threads: int | None = None) -> None:
        self._make, self._threads = make, threads
        self._ends, self._since_answer = Counter[int](), 0
        self._again = deque[dict[int, Row]]()
        self._workers = list[_Worker]()
        for device in devices:
            self._workers.append(_Worker(make, device, threads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()

    def answer(self, chunks: Iterator[dict[int, Row]]) -> Iterator[dict[int, Outcome]]:
        """Yield the outcomes of all rows, each row's once, as they come.

        Raises:
            WorkerError: Processes end again and again.
            Exception: What ``make`` raises.
        """
        is_over = False
        while True:
            for worker in self._workers:
                if worker.is_idle:
                    chunk = self._again.popleft() if self._again else next(chunks, None)
                    is_over = chunk is None
                    worker.give(chunk or {})
            if is_over and not self._again and not any(worker.rows for worker in self._workers):
                return
            for pipe in wait([worker.pipe for worker in self._workers]):
                (worker,) = (each for each in self._workers if each.pipe is pipe)
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    message = self._replace(worker)
                if found := worker.take(message):
                    self._since_answer = 0 if worker in self._workers else self._since_answer
                    yield found

    def _replace(self, worker: _Worker) -> dict[int, Outcome]:
        """Put another process in the place of one that ended; return the rows that are given up."""
        code = worker.end()
        self._since_answer += 1
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._since_answer > _MOST_ENDS:
            raise WorkerError(f"{_MOST_ENDS + 1} processes ended without an answer in between, the last by {how}")
        suspects = [number for number in worker.begun if number in worker.rows]  # read, or running
        self._ends.update(suspects)
        lost = [number for number in suspects if self._ends[number] >= TRIES]
        self._again.extend({number: worker.rows[number]} for number in suspects if number not in lost)
        if rest := {number: row for number, row in worker.rows.items() if number not in suspects}:
            self._again.append(rest)
        place = self._workers.index(worker)
        self._workers[place] = _Worker(self._make, worker.device, self._threads)
        return {number: Outcome(error=f"its process ended {TRIES} times, the last time by {how}") for number in lost}


class _Worker:
    """A process, and what it was given."""

    def __init__(self, make: Make, device: str, threads: int | None) -> None:
        self.device, self.rows, self.begun = device, dict[int, Row](), list[int]()
        self._is_ready = False
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(theirs, make, device, threads), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends with the process

    @property
    def is_idle(self) -> bool:
        return self._is_ready and not self.rows

    def give(self, rows: dict[int, Row]) -> None:
        if rows:
            self.rows, self.begun = dict(rows), []
            with suppress(OSError):  # it ended: the pipe says so when it is waited for
                self.pipe.send(rows)

    def take(self, message: Any) -> dict[int, Outcome]:
        """Note what a process sent; return the outcomes in it."""
        if isinstance(message, Exception):
            raise message
        if message == _READY:
            self._is_ready = True
            return {}
        if isinstance(message, list):
            self.begun += message
            return {}
        for number in message:
            del self.rows[number]
        found: dict[int, Outcome] = message
        return found

    def end(self) -> int:
        """End the process where it runs; return its exit code."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        return self._process.exitcode or 0


def _work(pipe: Connection, make: Make, device: str, threads: int | None) -> None:
    """Answer what comes through a pipe, until its other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with suppress(EOFError, OSError), ExitStack() as stack:
        try:
            answerer = stack.enter_context(make(device))
        except Exception as error:
            pipe.send(error)
            return
        pipe.send(_READY)
        while True:
            rows: dict[int, Row] = pipe.recv()
            for found in answerer.stream(rows, pipe.send):
                pipe.send(found)
