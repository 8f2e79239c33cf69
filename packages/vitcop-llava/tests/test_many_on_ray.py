"""``vitcop batch --ray`` on two local nodes, with a machine lost half-way, and the command itself."""

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

from vitcop_core.journal import partial_path

pytest.importorskip("ray", reason="Ray is not installed; pip install 'vitcop-llava[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, which has many

QUESTION = "What color is the circle?"
LINES = 240


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    memory = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**memory, "include_dashboard": False})
    made.second = made.add_node(**memory)
    yield made
    made.shutdown()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    for number in range(8):
        Image.linear_gradient("L").rotate(45 * number).resize((96, 96)).save(tmp_path / f"{number}.png")
    lines = [{"image": str(tmp_path / f"{n % 8}.png"), "question": QUESTION, "id": n} for n in range(LINES)]
    lines[LINES // 2]["image"] = "none.png"
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def start(checkpoint: Path, questions: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(*more: object) -> Any:
        run = "import sys; from vitcop_llava.tools.command import main; sys.argv[0] = 'vitcop'; main()"
        given = ["batch", questions, "--out", tmp_path / "out.jsonl", "--model", checkpoint, "--device", "cpu", *more]
        words = [sys.executable, "-c", run, *map(str, given), "--max-new-tokens", "2", "--json"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    return make


def written(out: Path) -> int:
    partial = partial_path(out)
    return len(partial.read_bytes().splitlines()) - 1 if partial.exists() else 0


def wait_for(out: Path, lines: int, process: Any) -> None:
    while written(out) < lines and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None


def finish(process: Any) -> Any:
    told = json.loads(process.communicate(timeout=240)[0])
    return process.returncode, told


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_lost_node_and_killed_command_leave_every_line_once(
    cluster: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    on_ray = ["--ray", cluster.address, "--workers", 2, "--batch-size", 2]
    killed = start(*on_ray)
    wait_for(out, LINES // 5, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = written(out)
    assert LINES // 5 <= before < LINES // 2
    going_on = start(*on_ray, "--resume")
    wait_for(out, LINES // 2, going_on)
    cluster.remove_node(cluster.second, allow_graceful=False)
    code, told = finish(going_on)
    assert (code, told["failed"], told["lines"]) == (1, 1, LINES)
    assert told["taken_over"] in (before, before - 1)  # lines that failed are asked again
    found = results(out)
    assert [line["line"] for line in found] == [*range(1, LINES + 1)]
    shutil.move(out, tmp_path / "on_ray.jsonl")
    assert finish(start())[0] == 1
    assert found == results(out)


def test_what_is_wrong_on_ray_is_told(start: Callable[..., Any], tmp_path: Path) -> None:
    code, told = finish(start("--ray", "127.0.0.1:1"))
    assert (code, told["error"][:34]) == (2, "--ray must be the address of a clu")
    code, told = finish(start("--ray", "local", "--workers", 1, "--model", "no/such/folder"))
    assert (code, "model must be an existing folder" in told["error"]) == (1, True)
    assert not partial_path(tmp_path / "out.jsonl").exists()
