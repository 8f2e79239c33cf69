"""Commands of vitcop in children of one process, killed at random moments, and what their folders hold then.

A command runs in a child in which everything slow is imported already. It is killed at a moment between its first file
and the time that it takes, or at the start of one of its steps on the file system.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

PARENT = """
import contextlib, io, json, os, sys
import torch
torch.set_num_threads(1)
import matplotlib.figure, transformers
from importlib import import_module
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from vitcop_llava.tools.cli import app
for name in sys.argv[1:]:
    import_module(name)


def run(arguments, steps, folder):
    seen = 0

    def on_event(event, given):
        # What the interpreter tells before it opens, renames, links or removes a file.
        nonlocal seen
        names = [each for each in given if isinstance(each, (str, bytes, os.PathLike))]
        if event in ("open", "os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir") and any(
            folder in os.fsdecode(name) for name in names
        ):
            seen += 1
            if seen == steps:
                os.kill(os.getpid(), 9)

    if steps is not None:
        sys.addaudithook(on_event)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            app(arguments)
        except SystemExit as error:
            code = error.code or 0
    if code:
        sys.__stderr__.write(said.getvalue())
    return code


print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os._exit(run(asked["arguments"], asked["steps"], asked["folder"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs commands in children of one process, which imports ``modules`` first, and kills them."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PARENT, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while self._line() != "ready":  # libraries may print as they are imported
            assert self._process.poll() is None

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, arguments: list[str], folder: Path, steps: int | None = None, seconds: float | None = None) -> int:
        """Runs a command; with ``steps`` or ``seconds`` it is killed then. Returns its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "steps": steps, "folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        child = int(self._line())
        if seconds is not None:
            deadline = time.monotonic() + 30
            while not any(folder.iterdir()) and time.monotonic() < deadline and alive(child):
                time.sleep(0.0005)
            time.sleep(seconds)
            if alive(child):
                os.kill(child, signal.SIGKILL)
        return int(self._line())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def alive(child: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return False
    return True


def kill_often(server: Server, command: list[str], out: Path, kills: int, *, seed: str, resume: bool) -> int:
    """Kills a command that writes into ``out`` at ``kills`` moments, then runs it to its end.

    Whatever a kill leaves must be whole, the last run must write what an undisturbed one writes, and with ``resume``
    most runs go on with what the one before left. Returns how often it was killed, which may be less than asked for.
    """
    chance = random.Random(seed)
    again = [*command, "--resume"] if resume else command
    out.mkdir()
    began = time.monotonic()
    assert server.run(command, out) == 0
    took, wanted = time.monotonic() - began, outputs(out)
    # A single file is written in a few steps and milliseconds at the very end.
    steps, window = (3, 0.004) if len(wanted) == 1 and not resume else (12, took / 4)
    killed = 0
    for attempt in range(4 * kills):
        if killed == kills:
            break
        if attempt % 5 == 0 or not resume:
            clear(out, wanted, keep_old=not resume)
        by_step = attempt % 2 == 0
        moment = {"steps": chance.randint(1, steps)} if by_step else {"seconds": chance.uniform(0, window)}
        killed += server.run(again, out, **moment) == -signal.SIGKILL
        check_folder(out)
    if resume and set(wanted) <= set(outputs(out)):
        clear(out, wanted, keep_old=False)
    assert server.run(again, out) == 0
    check_folder(out)
    assert outputs(out) == wanted  # what the killed runs left is gone
    return killed


def check_folder(folder: Path) -> None:
    """Checks for whole files under their names; beside them journals of whole lines, and hidden files."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.startswith(".vitcop-"):
            continue
        if path.suffix == ".partial":
            assert all(json.loads(line) for line in path.read_bytes().splitlines())
        else:
            assert path.read_bytes() == b"old\n" or is_whole(path), path


def is_whole(path: Path) -> bool:
    """Whether a file of one of the kinds that vitcop writes ends where it should."""
    content = path.read_bytes()
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
        return content.endswith(b"IEND\xaeB`\x82")
    if path.suffix == ".json":
        return bool(json.loads(content))
    if path.suffix == ".mp4":
        kinds, place = list[bytes](), 0
        while place < len(content):
            kinds.append(content[place + 4 : place + 8])
            place += int.from_bytes(content[place : place + 4], "big")
        return place == len(content) and b"moov" in kinds
    if path.suffix == ".jsonl":
        return content.endswith(b"\n") and all(json.loads(line) for line in content.splitlines())
    return content.endswith(b"\n")


def outputs(folder: Path) -> list[str]:
    """The files in a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def clear(folder: Path, wanted: list[str], *, keep_old: bool) -> None:
    """Empties the folder, or puts older files in the place of those that the command writes."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name in wanted if keep_old else ():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"old\n")
