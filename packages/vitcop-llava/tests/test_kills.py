"""Every command that writes, killed at random moments: no half file has a final name, and what can go on goes on.

A command runs in a child of this process, in which everything slow is imported already. It is killed at a moment
between its first file and the time that it takes, or at the start of one of its steps on the file system.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

QUESTION = "What color is the circle?"

SERVER = """
import contextlib, io, json, os, random, sys, time
import torch
torch.set_num_threads(1)
import matplotlib.figure, transformers
import vitcop_llava.tools.analysis.report, vitcop_llava.tools.batch.answerer, vitcop_llava.tools.benchmark.run
import vitcop_llava.tools.comparison.plot
import vitcop_llava.tools.comparison.run, vitcop_llava.tools.model.loading, vitcop_llava.prefix.image_prefix
import vitcop_llava.tools.media.video_support as video
if support := video.find_support():
    import vitcop_video.demo.files
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from vitcop_llava.tools.cli import app


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
    """Runs commands in children of one process, and kills them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

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
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def server() -> Any:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    lines = []
    for number in range(6):
        path = folder / f"{number}.png"
        Image.linear_gradient("L").rotate(60 * number).resize((96, 96)).save(path)
        lines.append(json.dumps({"image": str(path), "question": QUESTION, "id": number}))
    (folder / "batch.jsonl").write_text("\n".join(lines))
    return folder


def is_whole(path: Path) -> bool:
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


def check_folder(folder: Path) -> None:
    """Whole files under their names; beside them journals of whole lines, and hidden files."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.startswith(".vitcop-"):
            continue
        if path.suffix == ".partial":
            assert all(json.loads(line) for line in path.read_bytes().splitlines())
        else:
            assert path.read_bytes() == b"old\n" or is_whole(path), path


Command = Callable[[Path, Path, Path], list[str]]

COMMANDS: dict[str, Command] = {
    "scene": lambda inputs, model, out: ["scene", "--out", f"{out}/scene.png", "--force"],
    "scene --clip": lambda inputs, model, out: ["scene", "--clip", "--out", f"{out}/clip.mp4", "--force"],
    "show": lambda inputs, model, out: ["show", f"{inputs}/0.png", "--out", f"{out}/show.png", "--force", *use(model)],
    "bench": lambda inputs, model, out: [
        *("bench", "--repeats", "1", "--new-tokens", "1", "--method", "vitcop", "--retain", "1/3"),
        *("--out", f"{out}/bench.json", "--force", *use(model)),
    ],
    "analyze": lambda inputs, model, out: [
        *("analyze", f"{inputs}/0.png", "--out", f"{out}/analysis", "--force", *use(model)),
    ],
    "ask": lambda inputs, model, out: [
        *("ask", "--batch", f"{inputs}/batch.jsonl", "--out", f"{out}/answers.jsonl", "--max-new-tokens", "1"),
        *use(model),
    ],
    "batch": lambda inputs, model, out: [
        *("batch", f"{inputs}/batch.jsonl", "--out", f"{out}/answers.jsonl", "--batch-size", "2"),
        *("--max-new-tokens", "1", *use(model)),
    ],
    "compare": lambda inputs, model, out: [
        *("compare", "--limit", "4", "--batch-size", "2", "--retain", "1/3", "--method", "vitcop", "--timing", "0"),
        *("--max-new-tokens", "1", "--out", f"{out}/compared", *use(model)),
    ],
}


def use(model: Path) -> list[str]:
    return ["--model", str(model), "--device", "cpu"]


def outputs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", COMMANDS)
def test_no_half_file_has_a_final_name(
    server: Server,
    inputs: Path,
    checkpoint: Path,
    tmp_path: Path,
    kills: int,
    record_property: Callable[[str, object], None],
    name: str,
) -> None:
    if name == "scene --clip":
        pytest.importorskip("vitcop_video")
    command = COMMANDS[name](inputs, checkpoint, tmp_path / "out")
    resume = ["--resume"] if name in ("ask", "batch", "compare") else []
    out, chance = tmp_path / "out", random.Random(name)
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
        killed += server.run([*command, *resume], out, **moment) == -signal.SIGKILL
        check_folder(out)
    record_property("command", name)
    record_property("killed", killed)
    assert killed == kills
    if resume and set(wanted) <= set(outputs(out)):
        clear(out, wanted, keep_old=False)
    assert server.run([*command, *resume], out) == 0
    check_folder(out)
    assert outputs(out) == wanted  # what the killed runs left is gone
    if name in ("ask", "batch"):
        lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == [*range(6)]


def clear(folder: Path, wanted: list[str], *, keep_old: bool) -> None:
    """Empties the folder, or puts older files in the place of those that the command writes."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name in wanted if keep_old else ():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"old\n")
