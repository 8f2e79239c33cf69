"""What README and docs publish is what is stored."""

from __future__ import annotations

import importlib.util
import json
import re
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
from ordeal.kinds import SHARES
from ordeal.result import faults_of

from vitcop_core.presets import equal_budgets

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "docs" / "benchmarks").rglob("*.json"))
COMPILED = ROOT / "docs" / "benchmarks" / "ptxas.json"


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """docs/benchmarks/render.py, which is a script and no part of a package."""
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "benchmarks" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = {
    "README.md": "reaches its first token in 35 ms instead of 180 ms",
    "docs/index.md": "reaches its first token in 35 ms instead of 180 ms",
    "docs/benchmarks/index.md": "| unpruned | all | 144 |",
    "docs/demo-video-model.md": "| layers 1 and 6, both |",
    "docs/kernels.md": "| `Assign` |",
    "docs/howto/many-questions.md": "| pruned | 16 |",
    "docs/howto/video.md": "| vitcop-video, auto |",
    "docs/reliability.md": "| images |",
    "docs/howto/vllm.md": "| earlyvitcop, 64 |",
}


@pytest.mark.parametrize(("page", "row"), PAGES.items(), ids=PAGES)
def test_published_tables_equal_stored_results(render: ModuleType, page: str, row: str) -> None:
    text = (ROOT / page).read_text()
    assert render.rendered(text) == text
    assert row in text


def test_the_page_on_analysis_says_what_was_measured() -> None:
    page = " ".join((ROOT / "docs" / "howto" / "analyze.md").read_text().replace("> ", "").split())
    stored = json.loads((ROOT / "docs" / "benchmarks" / "demo-analysis.json").read_text())
    verdict = stored["verdict"]
    assert verdict["text"].partition("\n")[0] in page
    assert "With cuts before layers {} and {},".format(*stored["cuts"]) in page
    for cut in verdict["cuts"]:
        reads = cut["reads"]
        assert f"{cut['stage']} reads layer {reads['layer']}, where" in page
        assert f"is {reads['correlation']:.2f} " in page
        assert f"holds {100 * cut['kept']:.0f} %" in page
        assert f"the best ninth {100 * cut['kept_at_best']:.0f} %" in page
    table = (ROOT / "docs" / "benchmarks" / "index.md").read_text()
    norm, attention = (
        {
            share: re.search(rf"^\| {name} \| {share} \| [\d.]+ \| ([\d.]+)% \| ([\d.]+)%", table, re.M)
            for share in ("1/9", "1/3")
        }
        for name in ("ViTCoP", "w/o K-norm Guidance")
    )
    said = {
        name: {share: row[1] for share, row in rows.items() if row}
        for name, rows in (("norm", norm), ("attention", attention))
    }
    ninth, third = ((said["attention"][share], said["norm"][share]) for share in ("1/9", "1/3"))
    assert "{} % right answers at a ninth of the tokens, and {} % with the norm]".format(*ninth) in page
    assert "at a third {} % and {} %.".format(*third) in page
    assert norm["1/9"] is not None
    assert f"keeps {norm['1/9'][2]} % of the answers" in page


def test_no_compiled_kernel_spills() -> None:
    stored = json.loads(COMPILED.read_text())
    assert {"sm_80", "sm_90"} < {entry["architecture"] for entry in stored["kernels"]}
    assert not [entry for entry in stored["kernels"] if entry["spill_stores"] or entry["spill_loads"]]


@pytest.mark.parametrize("result", [path for path in RESULTS if path != COMPILED], ids=lambda path: path.name)
def test_stored_result_names_command_machine_and_versions(result: Path) -> None:
    stored = json.loads(result.read_text())
    command = stored["command"]
    module = (
        "vitcop_llava."
        if command.startswith(("vitcop ", "python scripts/", "python3 -m nox "))
        else command.removeprefix("python -m ")
    )
    package = module.partition(".")[0].replace("_", "-")
    assert package in {"vitcop-cuda", "vitcop-llava", "vitcop-video", "vitcop-vllm"}
    assert stored["environment"]["processor"]
    assert {"torch", package} <= set(stored["environment"]["packages"])


def test_batches_are_as_fast_as_was_asked_for() -> None:
    rows = json.loads((ROOT / "docs" / "benchmarks" / "many-demo-cpu.json").read_text())["rows"]
    best = [row for row in rows if row["batch_size"] == 16 and row["retain"] is not None]
    assert [row["threads"] for row in best] == [1, 2]
    assert min(row["speedup"] for row in best) >= 3


def test_ordeal_was_passed() -> None:
    stored = json.loads((ROOT / "docs" / "benchmarks" / "ordeal.json").read_text())
    assert {row["kind"] for row in stored["inputs"]} == set(SHARES)
    assert sum(row["tried"] for row in stored["inputs"]) >= 100_000
    for row in stored["inputs"]:
        assert row["accepted"] > 0
        assert row["refused"] > 0
        assert row["accepted"] + row["refused"] == row["tried"]
    assert faults_of(stored) == []
    assert stored["requests"][0]["requests"] >= 10_000
    assert min(row["killed"] for row in stored["kills"]) >= 50


def test_demo_model_answers_as_well_as_was_asked_for() -> None:
    compared = json.loads((ROOT / "docs" / "benchmarks" / "demo-comparison.json").read_text())["comparison"]
    whole = compared["variants"][0]
    assert (compared["questions"], whole["name"]) == (2000, "unpruned")
    assert min(right / asked for right, asked in whole["kinds"].values()) >= 0.90
    assert whole["accuracy"]["value"] >= 0.95


def test_demo_video_model_answers_as_well_as_was_asked_for() -> None:
    stored = json.loads((ROOT / "docs" / "benchmarks" / "demo-video-accuracy.json").read_text())
    right = {
        (row["variant"], row["retention_ratio"]): sum(row["right"].values())
        for row in stored["scores"]
        if row["unreachable"] is None
    }
    assert stored["clips"] == 1000
    assert {ratio for _, ratio in right} == {"1", "1/3", "1/9", "1/18"}
    assert right["unpruned", "1"] >= 900
    assert max(count for (_, ratio), count in right.items() if ratio == "1/9") >= 0.97 * right["unpruned", "1"]


def test_demo_comparison_is_of_every_method_at_four_equal_budgets() -> None:
    compared = json.loads((ROOT / "docs" / "benchmarks" / "demo-comparison.json").read_text())["comparison"]
    whole, *rows = compared["variants"]
    assert set(equal_budgets(1)) == {row["label"] for row in rows}
    for label in {row["label"] for row in rows}:
        assert [row["retain"] for row in rows if row["label"] == label] == ["1/3", "2/9", "1/9", "1/18"]
    for row in rows:
        most = Fraction(row["retain"]) * round(whole["tokens"])
        assert (row["nearest_tokens"] or 0) > most if row["problem"] else most - 1 < row["tokens"] <= most
