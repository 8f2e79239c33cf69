"""A process that tries inputs of one kind: ``python -m ordeal.worker KIND SEED FOLDER``.

It reads a number from each line of stdin and writes what the trial of that number came to, as a line of JSON. What
libraries print goes to a file in the folder. The process that started it watches the time.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from ordeal.kinds import SPACE, USUAL_SPACE, preparation
from ordeal.trials import LOG, FaultError, RefusedError, Trial, random_of

MOST_MEMORY = 2**30
"""Bytes that a trial may take on top of the process, as docs/reliability.md promises."""


def main(name: str, seed: int, folder: Path) -> None:
    answers, log = os.fdopen(os.dup(1), "w"), (folder / LOG).open("a")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    faulthandler.enable(log)
    bench = folder / "bench"
    bench.mkdir()
    os.chdir(bench)
    trial = preparation(name)(bench)
    limit_space(SPACE.get(name, USUAL_SPACE))
    watch = Watch()
    say(answers, {"ready": True})
    for line in sys.stdin:
        number = int(line)
        log.truncate(0)
        start = time.monotonic()
        answer = attempt(trial, watch, seed, name, number)
        say(answers, answer | {"seconds": time.monotonic() - start})


def say(answers: IO[str], content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def limit_space(size: int) -> None:
    """Makes allocations beyond what is allowed fail; processes that a trial starts may set limits of their own."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + size, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Watch:
    """What a trial leaves behind: memory at its highest, and handles that stay open."""

    def __init__(self) -> None:
        self._handles = handles()
        self._before = 0

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        self._before = status("VmRSS")

    def stop(self) -> int:
        """Returns the bytes that the trial took; raises `FaultError` for too many, and for handles."""
        taken = max(0, status("VmHWM") - self._before)
        if taken > MOST_MEMORY:
            raise FaultError(f"memory: {taken / 2**20:.0f} MiB")
        count, self._handles = handles(), min(self._handles, handles())
        if count > self._handles + 8:
            raise FaultError(f"{count - self._handles} files are left open")
        return taken


def status(name: str) -> int:
    """Bytes that the kernel says of this process."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (as quick as it gets: it is asked after every trial)


def attempt(trial: Trial, watch: Watch, seed: int, kind: str, number: int) -> dict[str, Any]:
    """What the trial of a number comes to."""
    watch.start()
    outcome: dict[str, Any] = {"outcome": "accepted"}
    try:
        try:
            trial(random_of(seed, kind, number))
        except RefusedError:
            outcome = {"outcome": "refused"}
        taken = watch.stop()
    except BaseException as error:
        # A process that lost memory or handles would be blamed for what comes next.
        is_spent = isinstance(error, FaultError | MemoryError)
        trace = traceback.format_exc()[-6000:]
        return {"outcome": "fault", "message": told(error), "trace": trace, "is_spent": is_spent}
    return outcome | {"bytes": taken}


def told(error: BaseException) -> str:
    said = f"{error}" if isinstance(error, FaultError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:500]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
