"""What stands in for a model in the processes of `vitcop batch`: it says the question, or ends its process."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitcop_llava.tools.batch import Outcome, Row


class Echo:
    """Answers two rows at a time.

    A question ``die`` ends the process, ``die once FILE`` does so unless the file is there, and ``wait`` takes a while.
    """

    def stream(self, rows: Mapping[int, Row], on_batch: Callable[[list[int]], None]) -> Iterator[dict[int, Outcome]]:
        numbers = [*rows]
        for start in range(0, len(numbers), 2):
            some = numbers[start : start + 2]
            on_batch(some)
            yield {number: self._answer(rows[number].question) for number in some}

    def _answer(self, question: str) -> Outcome:
        word, _, name = question.partition(" once ")
        if word == "wait":
            time.sleep(0.05)
        if word == "die" and not (name and Path(name).exists()):
            if name:
                Path(name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(f"{question} by {os.getpid()}")


@contextmanager
def echo(device: str) -> Iterator[Any]:
    if device == "none":
        raise ValueError("device must be one that is there, got 'none'")
    if device == "dead":
        os.kill(os.getpid(), signal.SIGKILL)
    yield Echo()
