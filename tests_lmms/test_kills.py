"""``vitcop eval``, killed at random moments, as ``packages/vitcop-llava/tests/test_kills.py`` kills the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import Server, kill_often

MODULES = ("lmms_eval.evaluator", "lmms_eval.tasks", "vitcop_llava.tools.lmms.beside", "vitcop_llava.tools.lmms.model")
ROWS = ("unpruned", "ViTCoP 128", "ViTCoP 64")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    running = Server(MODULES)
    yield running
    running.close()


def test_a_table_loses_no_run_and_repeats_none(
    server: Server, tmp_path: Path, kills: int, record_property: Callable[[str, object], None]
) -> None:
    out = tmp_path / "out"
    command = ["eval", "--table", "1", "--model", "demo", "--row", ",".join(ROWS), "--limit", "1", "--device", "cpu"]
    killed = kill_often(server, [*command, "--out", str(out)], out, kills, seed="eval", resume=True)
    record_property("command", "eval")
    record_property("killed", killed)
    assert killed == kills
    _, *runs = map(json.loads, (out / "runs.jsonl").read_text().splitlines())
    assert [run["row"] for run in runs] == [*ROWS]
