"""The paper's tables through lmms-eval: on demo models, killed and continued, and with tasks that lmms-eval has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lmms_eval.tasks
import pytest
from lmms_eval.utils import load_yaml_config
from typer.testing import CliRunner, Result

from vitcop_llava import ViTCoP
from vitcop_llava.tools.cli import app
from vitcop_llava.tools.lmms import plan as plans
from vitcop_llava.tools.lmms.model import Vitcop
from vitcop_llava.tools.lmms.published import TABLES, Task

COMMAND = "from vitcop_llava.tools.cli import main; main()"
TRIAL = ("eval", "--table", "4", "--model", "demo", "--limit", "6", "--device", "cpu")
ABLATIONS = ["ViTCoP", "w/o K-norm Guidance", "w/o Attention Guidance", "w/o Stage I Pruning", "w/o Stage III Pruning"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def result_of(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def runs_in(path: Path) -> list[dict[str, Any]]:
    """The runs that a journal holds, without its header."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines[1:]]


def test_a_killed_table_goes_on_where_it_was(tmp_path: Path) -> None:
    partial, whole = Path("out", "runs.jsonl.partial"), Path("out", "runs.jsonl")
    command = [sys.executable, "-c", COMMAND, *TRIAL, "--out", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while len(runs_in(partial)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    before = runs_in(partial)
    assert len(before) in (2, 3)  # and no more: it was killed
    assert not whole.exists()
    assert "--resume goes on with it" in run(*TRIAL, "--out", "out").stderr
    assert "of others; --force starts again" in " ".join(run(*TRIAL[:-4], "--out", "out", "--resume").stderr.split())

    result = result_of(*TRIAL, "--out", "out", "--resume")
    after = runs_in(whole)
    assert after[: len(before)] == before  # to the microsecond: none was run again
    assert [record["row"] for record in after] == ABLATIONS
    assert not partial.exists()

    lines = {line["row"]: line for line in result["rows"]}
    plan = ViTCoP(retained_tokens=16).plan(8, 144)
    assert lines["ViTCoP"]["tokens"] == pytest.approx(float(plan.average_tokens))
    assert lines["ViTCoP"]["measured"]["vitcop_scenes"] >= 0.5
    assert 0 < lines["ViTCoP"]["measured"]["TFLOPs"] < lines["w/o Stage III Pruning"]["measured"]["TFLOPs"]
    assert "retained_tokens must be from 22 to 115" in lines["w/o Stage I Pruning"]["out_of_reach"]
    assert lines["w/o Stage I Pruning"]["measured"]["vitcop_scenes"] is None
    assert json.loads(Path("out", "result.json").read_text())["rows"] == result["rows"]
    assert "| ViTCoP | 15.5 |" in Path("out", "report.md").read_text()


def test_a_run_that_fails_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, failing = Vitcop.generate_until, True

    def fail_once(self: Vitcop, requests: Any) -> Any:
        if failing and self.engine.pruner is not None:
            sys.exit("video path: does not exist, please check")  # as lmms-eval's own tasks end a process
        return answer(self, requests)

    monkeypatch.setattr(Vitcop, "generate_until", fail_once)
    few = ("eval", "--table", "1", "--model", "demo", "--row", "unpruned,ViTCoP 128", "--limit", "6", "--out", "out")
    first = run(*few)
    assert first.exit_code == 1, first.output
    assert "SystemExit: video path" in first.stderr
    assert "ViTCoP 128, vitcop_scenes failed: SystemExit" in first.stdout
    failing = False
    monkeypatch.setattr(Vitcop, "generate_until", answer)
    second = result_of(*few, "--resume")
    unpruned, pruned = second["rows"]
    assert (unpruned["share"], pruned["errors"]) == (100, {})
    assert 0 < pruned["share"] <= 100
    assert [record["row"] for record in runs_in(Path("out", "runs.jsonl"))] == ["unpruned", "ViTCoP 128"]
    # What is whole is not run again, and takes no model; what is told is all that the folder holds.
    again = result_of(*few[:5], "--row", "ViTCoP 128", *few[7:], "--resume")
    assert again["rows"] == second["rows"]


def test_a_table_about_clips_runs_on_the_demo_model_for_videos() -> None:
    result = result_of("eval", "--table", "3", "--model", "demo", "--row", "unpruned,ViTCoP 128", "--limit", "2")
    unpruned, pruned = result["rows"]
    assert (unpruned["tokens"], unpruned["measured"]["vitcop_clips"]) == (288, 1)
    assert pruned["tokens"] == pytest.approx(float(ViTCoP(retained_tokens=32).plan(8, (36,) * 8).average_tokens))


def test_what_tasks_need_is_asked_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "find_spec", lambda name: None)
    done = run("eval", "--table", "1", "--task", "COCO,GQA")
    assert done.exit_code == 2
    assert "got nothing of pycocoevalcap for COCO" in " ".join(done.stderr.split())
    assert not Path("vitcop-table-1").exists()


def config_of(name: str, folder: Path) -> dict[str, Any]:
    """A task's settings as lmms-eval reads them, without the functions, which need more than is installed."""
    for path in folder.rglob("*.yaml"):
        if re.search(rf'^(task|group)\s*:\s*"?{name}"?\s*$', path.read_text(), re.MULTILINE):
            config: dict[str, Any] = load_yaml_config(str(path), mode="simple")
            if name in (config.get("task"), config.get("group")):
                return config
    raise AssertionError(name)


@pytest.mark.parametrize(
    "task", dict.fromkeys(column.task for table in TABLES.values() for column in table.columns if column.task)
)
def test_tasks_data_and_metrics_are_those_of_lmms_eval(task: Task) -> None:
    folder = Path(lmms_eval.tasks.__file__).parent
    config = config_of(task.name, folder)
    if task.parts > 1:
        assert len(config["task"]) == task.parts
        config = config_of(config["task"][0], folder)
    metrics = {metric["metric"] for metric in config["metric_list"]}
    columns = [column for table in TABLES.values() for column in table.columns if column.task == task]
    assert {name for column in columns if column.is_score for name in column.metrics} <= metrics
    assert config["dataset_path"] == task.dataset
    assert config["output_type"] == "generate_until"
