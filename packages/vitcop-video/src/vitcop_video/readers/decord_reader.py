"""Frames by decord, in a process of its own.

decord ends the process that it runs in on some damaged files (an exception that leaves one of its threads), and also
when threads share a reader. So it runs in a worker, with a limit on memory and on time, that is gone after each read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

import numpy as np
from numpy.typing import NDArray

from vitcop_video.readers.base import Backend, BackendError, refusal_of_rest
from vitcop_video.readers.index import Index

CONTAINERS = ("mov", "matroska", "avi")
CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")

SECONDS = 60.0
SECONDS_PER_FRAME = 5.0
"""What a worker is given: a start, and the decoding of a long group of pictures for each frame."""

BYTES = 4 * 2**30
"""Address space that a worker may have beside the frames that it returns."""

_WORKER = Path(__file__).with_name("decord_worker.py")


@cache
def missing() -> str | None:
    """Why decord cannot run here; None where it can. It is not imported into this process."""
    if find_spec("decord") is None:
        return "decord is not installed"
    probe = subprocess.run(
        [sys.executable, "-P", "-c", "import decord"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if probe.returncode:
        return f"decord cannot be imported: {_last_line(probe.stderr)}"
    return None


def refusal(index: Index) -> str | None:
    """Why a file is not for decord: its FFmpeg is 4.1, and it finds frames by counting from a key frame."""
    if index.has_leading_frames:
        return "frames appear before the key frame that they follow, which makes it miscount"
    return refusal_of_rest(index, CONTAINERS, CODECS)


def decode(index: Index, frames: Sequence[int]) -> NDArray[np.uint8]:
    """Upright frames, [F, H, W, 3] uint8, of ascending frame numbers without repeats.

    Raises:
        BackendError: decord fails, dies or takes too long, or its frames are not those of the index.
    """
    width, height = index.orientation.size(index.width, index.height)
    pixels = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    seconds = index.seconds(np.asarray(frames))
    request = {
        "path": str(index.path),
        "frames": list(map(int, frames)),
        "count": len(index.order),
        "shape": list(pixels.shape),
        "seconds": seconds.tolist(),
        "bytes": BYTES + 3 * pixels.nbytes,
    }
    command = [sys.executable, "-P", str(_WORKER)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as worker:
        limit = SECONDS + SECONDS_PER_FRAME * len(frames)
        timer = Timer(limit, worker.kill)
        timer.start()
        try:
            _exchange(worker, request, pixels)
        except BackendError as error:
            if timer.finished.is_set():
                raise BackendError(f"took longer than {limit:g} s") from error
            raise
        finally:
            timer.cancel()
            timer.join()
            worker.kill()
    return pixels


def _exchange(worker: subprocess.Popen[bytes], request: dict[str, object], pixels: NDArray[np.uint8]) -> None:
    """Sends the request, and fills ``pixels`` with the answer: a line of JSON, then the bytes of the frames."""
    if worker.stdin is None or worker.stdout is None:
        raise BackendError("no pipe to its process")
    try:
        worker.stdin.write(json.dumps(request).encode() + b"\n")
        worker.stdin.close()
    except BrokenPipeError:
        pass  # it is dead already, and its answer is empty
    head = bytearray()
    while not head.endswith(b"\n") and (byte := worker.stdout.read(1)):
        head += byte
    if not head.endswith(b"\n"):
        raise BackendError(_death(worker))
    if error := json.loads(head).get("error"):
        raise BackendError(f"{error}")
    view = pixels.data.cast("B")
    while view:
        got = worker.stdout.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise BackendError(_death(worker))
        view = view[got:]


def _death(worker: subprocess.Popen[bytes]) -> str:
    code = worker.wait()
    return f"its process ended without an answer ({'signal' if code < 0 else 'exit code'} {abs(code)})"


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


BACKEND = Backend("decord", missing, refusal, decode)
