"""The ordeal in its short form, and what it is worth: whatever must not happen is found, and a stop loses nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ordeal import __main__ as program
from ordeal import crew, kills, requests
from ordeal.console import Console
from ordeal.crew import Hand, Outcome
from ordeal.kinds import SHARES, SHORT
from ordeal.mutate import mutated, mutated_json, mutated_text
from ordeal.result import Tried, chunks_of, faults_of, stored
from ordeal.trials import FaultError

from vitcop_core.journal import partial_path
from vitcop_llava.tools.cli import errors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through /proc")
SEED = 7

BAD_KIND = """
import os, time
from random import Random
from ordeal.trials import RefusedError, documented

NUMBERS = {Random(f"0/bad/{number}").random(): number for number in range(11)}


def prepare(folder):
    kept = []

    def trial(random):
        what = NUMBERS[random.random()]
        if what == 1:
            raise RefusedError
        if what == 2:
            raise KeyError("nobody expected this")
        if what == 3:
            os.abort()
        while what == 4:
            time.sleep(0.01)
        while what == 5:
            pass
        if what == 6:
            kept.append(b"x" * (5 * 2**28))
        if what == 7:
            bytearray(2**40)
        if what == 8:
            kept.extend(open(os.devnull) for _ in range(20))
        if what == 9:
            with documented(ValueError):
                raise ValueError("x" * 5000)
        if what == 10:
            os._exit(3)

    return trial
"""


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hand]:
    """Has trials of a kind tried that end in every way."""
    (tmp_path / "bad.py").write_text(BAD_KIND)
    (tmp_path / "sitecustomize.py").write_text(
        f"import ordeal.kinds\nordeal.kinds.__path__.append({str(tmp_path)!r})\n"
    )
    folders = [str(tmp_path), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    monkeypatch.setattr(crew, "LIMIT", 2.5)
    monkeypatch.setattr(crew, "PATIENCE", 8.0)
    hand = Hand(0)
    yield hand
    hand.close()


def test_whatever_must_not_happen_is_found(bad: Hand) -> None:
    found = {outcome.number: outcome for outcome in bad.run("bad", range(11))}
    assert [found[number].outcome for number in range(11)] == ["accepted", "refused", *["fault"] * 9]
    said = {number: outcome.message for number, outcome in found.items()}
    assert said[2] == "KeyError: 'nobody expected this'"
    assert said[3] == "ended its process (SIGABRT)"
    assert said[4] == said[5] == "took more than 2.5 s"
    assert said[6].startswith("memory: 1280 MiB")
    assert said[7] == "MemoryError:"
    assert said[8] == "20 files are left open"
    assert said[9].startswith("a ValueError with a message of 5,000 characters")
    assert said[10] == "ended its process (exit code 3)"
    assert "in trial" in found[2].trace
    assert "Fatal Python error: Aborted" in found[3].trace


@pytest.mark.parametrize("kind", SHORT)
def test_short_form_finds_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    hand = Hand(SEED)
    try:
        outcomes = [*hand.run(kind, range(SHORT[kind]))]
    finally:
        hand.close()
    assert [(outcome.number, outcome.message) for outcome in outcomes if outcome.outcome == "fault"] == []
    assert {outcome.outcome for outcome in outcomes} == {"accepted", "refused"}


def test_requests_from_threads_are_answered_as_alone() -> None:
    result = requests.run(program.SHORT_REQUESTS // 2, SEED)
    assert result.faults == []
    assert sum(result.kinds.values()) == result.requests
    assert len(result.kinds) == 9


def test_another_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(10**6))
    changed: Any = lambda prefix: {"forward": lambda model, seed: (next(count),)}  # noqa: E731
    monkeypatch.setattr(requests, "kinds_of_requests", changed)
    result = requests.run(20, SEED)
    assert len(result.faults) == 20
    assert "another answer" in result.faults[0]


def test_kinds_share_all_inputs() -> None:
    assert sum(SHARES.values()) == 1000
    assert SHARES.keys() == SHORT.keys()
    assert {path.stem for path in (Path(program.__file__).parent / "kinds").glob("[a-z]*.py")} == {*SHARES}


def test_damage_depends_on_the_seed_alone() -> None:
    data, content = bytes(range(256)) * 4, {"a": [1, {"b": "text"}], "c": None}
    for number in range(300):
        one, other = (
            (mutated(data, random, data), mutated_json(content, random), mutated_text("vitcop(layers=(1, 6))", random))
            for random in (Random(number), Random(number))
        )
        assert one == other
    assert content == {"a": [1, {"b": "text"}], "c": None}


def test_a_stopped_ordeal_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    tried: list[int] = []

    class Quick(Hand):
        def run(self, kind: str, numbers: Any) -> Iterator[Outcome]:
            for number in numbers:
                tried.append(number)
                if len(tried) == 12:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.5)  # it is the main thread that hears of it
                yield Outcome(number, "refused" if number % 2 else "accepted", 0.5)

    monkeypatch.setattr(program, "Hand", Quick)
    monkeypatch.setattr(program, "CHUNK", 5)
    monkeypatch.setattr(program, "SHARES", {"images": 1000})
    monkeypatch.setattr(
        program, "requests", lambda count, seed: {"faults": [], "requests": count, "threads": 4} | GROWTH
    )
    monkeypatch.setattr(kills, "run", lambda count: [{"name": "scene", "killed": count, "fault": None}])
    out = tmp_path / "ordeal.json"
    words = ["--inputs", "20", "--workers", "1", "--out", str(out)]
    assert program.main(words) == 130
    assert not out.exists()
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="is of another run"):
        program.main([*words, "--seed", "3"])
    assert program.main(words) == 0
    result = json.loads(out.read_text())
    assert [(row["tried"], row["accepted"], row["refused"]) for row in result["inputs"]] == [(20, 10, 10)]
    assert result["kills"] == [{"name": "scene", "killed": 50, "fault": None}]
    assert not partial_path(out).exists()
    assert sorted(tried) == sorted([*range(20), 10, 11])  # the chunk that was stopped is tried again


GROWTH = {"before": 2**20, "after": 2**20}


def test_faults_end_with_exit_code_one_and_are_told() -> None:
    line = Tried("images", 0)
    line.add(Outcome(3, "fault", 0.1, message="ended its process (SIGSEGV)"))
    run = {"faults": ["forward 1, request 7: another answer"], "requests": 9}
    killed = [{"name": "scene", "killed": 3, "fault": "half a file"}]
    result = stored("python3 -m nox -s ordeal", 1, [{"inputs": vars(line)}, {"requests": run}, {"kills": killed}])
    assert faults_of(result) == [
        "images 3: ended its process (SIGSEGV)",
        "requests: forward 1, request 7: another answer",
        "kills: scene: half a file",
    ]
    assert [(chunk.first, chunk.count) for chunk in chunks_of({"a": 7}, 3)] == [(0, 3), (3, 3), (6, 1)]


def test_console_finds_errors_that_nobody_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console()
    assert console.run(["doctor", "--none"]).code == 2
    assert console.run([]).code == 2

    def fail(*_: object) -> None:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(import_module("vitcop_llava.tools.cli.scene"), "check_output", fail)
    with pytest.raises(FaultError, match="an error that nobody expected"):
        console.run(["scene"])
    monkeypatch.setattr(errors, "print_error", lambda text: print("Error: a\nb", file=sys.stderr))
    with pytest.raises(FaultError, match="a message of several lines"):
        console.run(["scene"])
    monkeypatch.setattr(
        errors, "print_error", lambda text: print("Traceback (most recent call last):", file=sys.stderr)
    )
    with pytest.raises(FaultError, match="a traceback"):
        console.run(["scene"])
