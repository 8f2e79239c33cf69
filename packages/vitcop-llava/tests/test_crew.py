"""The processes of ``vitcop batch``, with something that answers at once in the place of a model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from echo import echo

from vitcop_llava.tools.batch import Outcome, Row
from vitcop_llava.tools.batch.processes import Crew, WorkerError
from vitcop_llava.tools.batch.rows import chunks


def ask(questions: Sequence[str], processes: int = 2, size: int = 4, kill_after: int = 0) -> dict[int, Outcome]:
    """Every outcome by its row; fails where a row has two."""
    rows = ((number, Row(("x.png",), question)) for number, question in enumerate(questions))
    found: dict[int, Outcome] = {}
    with Crew(echo, ["cpu"] * processes) as crew:
        for outcomes in crew.answer(chunks(rows, size)):
            assert not found.keys() & outcomes.keys()
            found |= outcomes
            if kill_after and len(found) >= kill_after:
                kill_after = 0
                os.kill(process_of(next(iter(outcomes.values()))), signal.SIGKILL)
    return found


def process_of(outcome: Outcome) -> int:
    assert outcome.answer is not None
    return int(outcome.answer.rpartition(" by ")[2])


def test_rows_are_shared_and_answered_once() -> None:
    found = ask(["wait"] * 30)
    assert sorted(found) == [*range(30)]
    assert len({process_of(outcome) for outcome in found.values()}) == 2


def test_no_rows_are_no_outcomes() -> None:
    assert ask([]) == {}


@pytest.mark.parametrize("after", [1, 9])
def test_killed_process_loses_and_repeats_no_row(after: int) -> None:
    found = ask(["wait"] * 24, kill_after=after)
    assert sorted(found) == [*range(24)]
    assert all(outcome.error is None for outcome in found.values())
    assert len({process_of(outcome) for outcome in found.values()}) == 3


def test_row_that_ends_its_process_is_told_of_alone(tmp_path: Path) -> None:
    questions = ["a", f"die once {tmp_path}/died", "b", "die", "c", "d", "e", "f"]
    found = ask(questions, processes=1)
    errors = {number: outcome.error for number, outcome in found.items() if outcome.error is not None}
    assert sorted(found) == [*range(8)]
    assert errors == {3: "its process ended 2 times, the last time by signal 9"}


def test_processes_that_always_end_are_given_up() -> None:
    with pytest.raises(WorkerError, match="6 processes ended without an answer in between, the last by signal 9"):
        crew_on("dead")


def crew_on(device: str) -> None:
    with Crew(echo, [device]) as crew:
        [*crew.answer(chunks(iter([(0, Row(("x.png",), "a"))]), 1))]


def test_what_a_process_raises_at_its_start_is_raised() -> None:
    with pytest.raises(ValueError, match="device must be one that is there, got 'none'"):
        crew_on("none")


PARENT = """
import os, sys
from echo import echo
from vitcop_llava.tools.batch import Row
from vitcop_llava.tools.batch.processes import Crew
from vitcop_llava.tools.batch.rows import chunks
if __name__ == "__main__":
    rows = ((number, Row(("x.png",), "wait")) for number in range(10**6))
    with Crew(echo, ["cpu"] * 2) as crew:
        for outcomes in crew.answer(chunks(rows, 4)):
            print(next(iter(outcomes.values())).answer.rpartition(" by ")[2], flush=True)
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join([*sys.path])
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert parent.stdout is not None
    children: set[int] = set()
    while len(children) < 2:
        children.add(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, children))


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    import multiprocessing

    before: Any = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) == before
