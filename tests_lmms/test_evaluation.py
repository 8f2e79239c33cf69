"""The models inside of lmms-eval: keeping everything is the model as it is, a batch is its rows, and costs are told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.models import get_model

from vitcop_llava import ViTCoP
from vitcop_llava.tools.lmms.model import Vitcop, VitcopChat

Evaluate = Callable[..., dict[str, Any]]
Given = Callable[[dict[str, Any]], dict[str, list[Any]]]
SCENES, CHOICE, CLIPS = "vitcop_scenes", "vitcop_scenes_choice", "vitcop_clips"
_KINDS = ("visual_tokens", "visual_tokens_kept", "prefill_gmacs", "prefill_gmacs_unpruned", "cache_mib")
COSTS = {f"avg_{kind}{name}" for name in (*_KINDS, "cache_mib_unpruned") for kind in ("", "loglikelihood_")}


@pytest.fixture(scope="module")
def unpruned(evaluate: Evaluate) -> Callable[[int], dict[str, Any]]:
    """The model as it is, on questions and choices, by size of batch."""
    return cache(lambda size: evaluate("method=none", SCENES, CHOICE, batch_size=size, simple=True))


def test_the_entry_point_gives_both_classes() -> None:
    assert get_model("vitcop") is VitcopChat
    assert get_model("vitcop", force_simple=True) is Vitcop


@pytest.mark.parametrize("batch_size", [1, 8])
def test_keeping_everything_is_the_unpruned_model(
    batch_size: int, unpruned: Callable[[int], dict[str, Any]], evaluate: Evaluate, given: Given
) -> None:
    wanted = given(unpruned(batch_size))
    kept = evaluate("method=vitcop,retain=all", SCENES, CHOICE, batch_size=batch_size, simple=True)
    assert given(kept) == wanted
    by_messages = given(evaluate("method=vitcop,retain=all", SCENES, batch_size=batch_size))
    assert by_messages == {SCENES: wanted[SCENES]}
    assert len(wanted[SCENES]) == 72
    assert sum(len(losses) for losses in wanted[CHOICE]) > 60


def test_the_demo_model_answers_and_chooses_right(unpruned: Callable[[int], dict[str, Any]]) -> None:
    results = unpruned(8)["results"]
    assert results[SCENES]["exact_match,none"] == 1
    assert results[CHOICE]["acc,none"] == 1


def test_a_pruned_batch_is_its_rows(
    evaluate: Evaluate, given: Given, unpruned: Callable[[int], dict[str, Any]]
) -> None:
    runs = [
        evaluate("method=vitcop,retain=32", SCENES, CHOICE, batch_size=size, simple=True, limit=18)
        for size in (1, 5)  # which does not divide the questions
    ]
    alone, together = map(given, runs)
    assert alone[SCENES] == together[SCENES]
    for losses, others in zip(alone[CHOICE], together[CHOICE], strict=True):
        assert [loss for loss, _ in losses] == pytest.approx([loss for loss, _ in others], abs=1e-4)
        assert [greedy for _, greedy in losses] == [greedy for _, greedy in others]
    assert alone[CHOICE] != given(unpruned(1))[CHOICE]

    # Costs are those of the plan, whatever the batch was padded to.
    plan = ViTCoP(retained_tokens=32).plan(8, 144)
    costs = [{name: value for name, value in run["throughput"].items() if name in COSTS} for run in runs]
    assert [len(found) for found in costs] == [len(COSTS)] * 2
    assert costs[0] == pytest.approx(costs[1])
    found = costs[0]
    assert found["avg_visual_tokens"] == 144
    assert found["avg_visual_tokens_kept"] == pytest.approx(float(plan.average_tokens))
    assert found["avg_prefill_gmacs"] < 0.5 * found["avg_prefill_gmacs_unpruned"]
    assert found["avg_cache_mib"] < 0.5 * found["avg_cache_mib_unpruned"]
    assert found["avg_loglikelihood_visual_tokens_kept"] == pytest.approx(float(plan.average_tokens))
    whole = evaluate("method=none", SCENES, batch_size=8, limit=18)["throughput"]
    assert whole["avg_prefill_gmacs"] == pytest.approx(found["avg_prefill_gmacs_unpruned"])


def test_clips_are_answered_pruned_and_not(evaluate: Evaluate, given: Given) -> None:
    wanted = given(evaluate("pretrained=demo-video,method=none", CLIPS))
    kept = evaluate("pretrained=demo-video,method=fastv,retain=all", CLIPS, batch_size=4, simple=True)
    assert given(kept) == wanted
    assert kept["results"][CLIPS]["exact_match,none"] == 1
    pruned = evaluate("pretrained=demo-video,method=vitcop,retain=1/9,max_frames_num=50", CLIPS, batch_size=4)
    assert pruned["throughput"]["avg_visual_tokens_kept"] <= 288 / 9


def test_command_line_writes_costs_into_the_results(folder: Path, tmp_path: Path) -> None:
    arguments = "pretrained=demo,method='vitcop(layers=(1, 6))',retain=64"
    command = [sys.executable, "-m", "lmms_eval", "--model", "vitcop", "--model_args", arguments]
    command += ["--tasks", SCENES, "--include_path", str(folder), "--limit", "6", "--batch_size", "4"]
    command += ["--device", "cpu", "--output_path", str(tmp_path), "--verbosity", "DEBUG"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = tmp_path.rglob("*_results.json")
    results = json.loads(file.read_text())
    assert results["results"][SCENES]["exact_match,none"] >= 0.5
    plan = ViTCoP(retained_tokens=64, layers=(1, 6)).plan(8, 144)
    assert results["throughput"]["avg_visual_tokens_kept"] == pytest.approx(float(plan.average_tokens))
