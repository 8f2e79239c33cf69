"""The process that suspicious or huge files are read in: it limits its own memory and time, then reads.

It is run as a file by :mod:`vitcop_video.readers.confined`, and imports neither torch nor vitcop-core.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

STACK = 9 * 2**20
"""Bytes of address space that a thread takes for its stack."""

ARENA = 136 * 2**20
"""And for what glibc reserves for its allocations, which is not memory until it is used."""


def main() -> None:
    """Answer one request."""
    # Whatever a library prints must not end up among the pixels.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = request["path"]
    from vitcop_video.readers import worker_tasks  # what it imports is not counted
    from vitcop_video.readers.base import VideoError

    try:
        limit(request["bytes"], request["threads"], request["seconds"])
    except (ImportError, OSError, ValueError) as error:
        _say(answer, {"error": f"this system cannot limit the memory of a process ({error})"})
        return
    try:
        worker_tasks.TASKS[request["task"]](request, answer)
    except MemoryError:
        _say(answer, {"memory": True})
    except VideoError as error:
        _say(answer, {"error": str(error), "memory": worker_tasks.ran_out(error)})
    answer.flush()


def limit(size: int, threads: int, seconds: float | None) -> None:
    """Let this process take ``size`` bytes more than it has, and only so much time."""
    import resource

    virtual, data = _held()
    stacks = threads * STACK
    space = virtual + size + stacks + threads * ARENA
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    # Reserved address space is not memory. Where the system counts data alone, this is the exact limit.
    resource.setrlimit(resource.RLIMIT_DATA, (data + size + stacks, data + size + stacks))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if seconds is not None:
        cpu = int(seconds * max(1, threads)) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))


def _held() -> tuple[int, int]:
    """Return the bytes of address space, and of data, that this process has now; a guess where there is no /proc."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            fields = [int(field) * os.sysconf("SC_PAGE_SIZE") for field in file.read().split()]
        return fields[0], fields[5]
    except (OSError, ValueError, IndexError):
        return 2**30, 2**29


def _say(answer: BinaryIO, content: dict[str, Any]) -> None:
    answer.write(json.dumps(content).encode() + b"\n")
    answer.flush()


if __name__ == "__main__":
    main()
