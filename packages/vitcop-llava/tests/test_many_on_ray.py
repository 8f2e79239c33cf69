"""``vitcop batch --ray`` on two local machines, with one lost half-way, and the command itself.

Ray runs in other processes than the tests: it warns of much, and leaves much open.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from vitcop_core.journal import partial_path
from vitcop_llava.tools.cli import app

pytest.importorskip("ray", reason="Ray is not installed; pip install 'vitcop-llava[ray]'")

QUESTION = "What color is the circle?"
LINES = 240
SUPPORT = Path(__file__).parent / "support"
# Whoever starts Ray hands on where modules are found; and these tests ask nobody about anything. Ray's processes do not
# start where its files are in a virtual environment, as the temporary folder of a nox session is.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TMPDIR": "/tmp",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
PATIENCE = 240
"""Seconds until a run counts as hanging."""


def run(*words: object, **more: Any) -> Any:
    given = [sys.executable, *map(str, words)]
    return subprocess.Popen(given, stdout=subprocess.PIPE, text=True, env=os.environ | QUIET, **more)


class Machines:
    """Two of them."""

    def __init__(self) -> None:
        self._process = run(SUPPORT / "machines.py", stdin=subprocess.PIPE)
        self.address = self._process.stdout.readline().strip()

    def lose_second(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines()
    yield made
    made.end()


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path) -> Path:
    """Pictures, questions and a model, under names that say nothing to a process elsewhere."""
    for number in range(8):
        Image.linear_gradient("L").rotate(45 * number).resize((96, 96)).save(tmp_path / f"{number}.png")
    lines = [{"image": f"{n % 8}.png", "question": QUESTION, "id": n} for n in range(LINES)]
    lines[LINES // 2]["image"] = str(tmp_path / "none.png")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(checkpoint, tmp_path / "model")
    return tmp_path


COMMAND = ("batch", "questions.jsonl", "--model", "model", "--device", "cpu", "--max-new-tokens", "2", "--json")


@pytest.fixture
def start(folder: Path) -> Callable[..., Any]:
    """Run ``vitcop batch`` in the folder, as a process that can be killed."""
    program = "import sys; from vitcop_llava.tools.command import main; sys.argv[0] = 'vitcop'; main()"
    return lambda *more: run("-c", program, *COMMAND, *more, cwd=folder)


def written(out: Path) -> int:
    partial = partial_path(out)
    return len(partial.read_bytes().splitlines()) - 1 if partial.exists() else 0


def wait_for(out: Path, lines: int, process: Any) -> None:
    end = time.monotonic() + PATIENCE
    while written(out) < lines and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    if written(out) < lines or process.poll() is not None:
        process.kill()
        raise AssertionError(f"{written(out)} lines of {lines}, exit code {process.poll()}")


def finish(process: Any) -> Any:
    told = json.loads(process.communicate(timeout=PATIENCE)[0])
    return process.returncode, told


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_lost_machine_and_killed_command_leave_every_line_once(
    machines: Machines, start: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "out.jsonl"
    on_ray = ["--out", out, "--ray", machines.address, "--batch-size", 2]
    killed = start(*on_ray, "--workers", 1)
    wait_for(out, LINES // 5, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = written(out)
    assert LINES // 5 <= before < LINES // 2
    going_on = start(*on_ray, "--workers", 2, "--resume")
    wait_for(out, LINES // 2, going_on)
    machines.lose_second()
    code, told = finish(going_on)
    assert (code, told["failed"], told["lines"]) == (1, 1, LINES)
    assert told["taken_over"] in (before, before - 1)  # lines that failed are asked again
    found = results(out)
    assert [line["line"] for line in found] == [*range(1, LINES + 1)]
    monkeypatch.chdir(folder)
    assert CliRunner().invoke(app, [*COMMAND, "--out", "alone.jsonl"]).exit_code == 1
    assert found == results(folder / "alone.jsonl")


def test_row_that_ends_its_process_is_told_of_alone() -> None:
    output, _ = run(SUPPORT / "echo_on_ray.py", "a", "die", "b", "c", "d", "e").communicate(timeout=120)
    *blocks, failed = [json.loads(line) for line in output.splitlines()]
    found = {int(number): outcome for block in blocks for number, outcome in block.items()}
    assert sum(map(len, blocks)) == len(found) == 6
    errors = {number: outcome["error"] for number, outcome in found.items() if outcome["error"] is not None}
    assert errors == {1: "its process ended 2 times"}
    assert failed == {"raised": "device must be one that is there, got 'none'"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data's own settings
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "--ray must be the address of a cluster, auto or local, got 127.0.0.1:1: [Errno"),
        ("ray://head:10001", "--ray must be host:port, auto or local, got ray://head:10001; run on a machine"),
    ],
)
def test_address_of_no_cluster_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, [*COMMAND, "--out", "out.jsonl", "--ray", address])
    assert result.exit_code == 2, result.output
    assert json.loads(result.stdout)["error"].startswith(said)
    assert not partial_path(folder / "out.jsonl").exists()
