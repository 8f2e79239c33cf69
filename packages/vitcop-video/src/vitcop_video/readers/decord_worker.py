"""The process that decord runs in: a request on standard input, frames on standard output.

It is run as a file, so that it imports decord and NumPy and nothing of this package.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO


def main() -> None:
    """Answer one request."""
    # Whatever a library prints must not end up among the pixels.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    try:
        _answer(request, answer)
    except Exception as error:  # decord.DECORDError derives from Exception; RuntimeError, IndexError, MemoryError too
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer.write(json.dumps({"error": lines[0] if lines else repr(error)}).encode() + b"\n")
    answer.flush()


def _answer(request: dict[str, Any], answer: BinaryIO) -> None:
    import decord  # type: ignore[import-untyped]
    import numpy as np

    _limit_memory(request["bytes"])
    reader = decord.VideoReader(request["path"])
    if len(reader) != request["count"]:
        raise ValueError(f"frames must be {request['count']}, got {len(reader)}")
    times = reader.get_frame_timestamp([0, *request["frames"]])[:, 0].astype(np.float64)
    # Single precision: a quarter of a millisecond after an hour.
    if not np.allclose(times[1:] - times[0], request["seconds"], rtol=1e-6, atol=2e-3):
        raise ValueError("frames must have the same times, got others")
    frames, whole, at_a_time = request["frames"], request["shape"], request["at_a_time"]
    for start in range(0, len(frames), at_a_time):
        part = frames[start : start + at_a_time]
        pixels = reader.get_batch(part).asnumpy()
        if list(pixels.shape) != [len(part), *whole[1:]]:
            raise ValueError(f"frames must be of shape {whole}, got {list(pixels.shape)}")
        if not start:
            answer.write(b"{}\n")
        answer.write(np.ascontiguousarray(pixels).data)


def _limit_memory(size: int) -> None:
    """Let this process take ``size`` bytes more of data than it has, where the system can count them."""
    try:
        import resource

        with open("/proc/self/statm") as file:  # noqa: PTH123
            data = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        limit = data + size + (os.cpu_count() or 1) * 2 * 9 * 2**20  # stacks of its threads
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except (ImportError, OSError):  # not on Windows, nor on macOS
        return


if __name__ == "__main__":
    main()
