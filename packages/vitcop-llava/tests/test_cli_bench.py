"""``vitcop bench`` on small shapes: what it stores and prints, and what it refuses."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from vitcop_llava import families
from vitcop_llava.tools.benchmark import memory
from vitcop_llava.tools.cli import app
from vitcop_llava.tools.demo.build import demo_processor, initialised_model, save_demo

QUICK = ("--repeats", "1", "--dtype", "float32", "--device", "cpu", "--text-tokens", "6")


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_bench_stores_what_it_takes_to_run_it_again(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    shape = ("--shape", "small-next", "--image-size", "336x168", "--method", "VisionZip,vitcop", "--retain", "50%,60")
    result = bench(*QUICK, *shape, "--new-tokens", "2", "--batch", "2", "--out", out)
    assert result.exit_code == 0, result.output
    assert "small-next: 8 layers, float32 on cpu, sdpa attention; 432 visual tokens" in " ".join(result.stdout.split())
    stored = json.loads(out.read_text())
    assert stored["command"] == (
        "vitcop bench --shape small-next --dtype float32 --device cpu --attention sdpa --method vitcop,visionzip "
        "--retain 216,60 --repeats 1 --new-tokens 2 --seed 0 --batch 2 --text-tokens 6 --image-size 336x168"
    )
    assert {"processor", "packages"} <= set(stored["environment"])
    assert stored["model"]["class"] == "LlavaNextForConditionalGeneration"
    assert [(row["method"], row["retained_tokens"]) for row in stored["rows"]] == [
        ("unpruned", None),
        ("VisionZip", 216),
        ("ViTCoP", 216),
        ("VisionZip", 60),
        ("ViTCoP", 60),
    ]
    assert all(row["cache_bytes"] == row["planned_cache_bytes"] is not None for row in stored["rows"])
    # Only a GPU is watched at work.
    assert {(row["busy_prefill"], row["busy_token"]) for row in stored["rows"]} == {(None, None)}
    assert "GPU busy" not in result.stdout
    repeated = bench(*stored["command"].split()[2:], "--json")
    assert (repeated.exit_code, repeated.stderr) == (0, "")
    assert json.loads(repeated.stdout)["command"] == stored["command"]


def test_bench_goes_on_past_a_budget_that_a_method_cannot_reach() -> None:
    result = bench(*QUICK, "--shape", "small", "--method", "fastv,vitcop", "--retain", "64", "--new-tokens", "1")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "FastV at 64: retained_tokens must be at least 73 of the 576 visual tokens of an image for FastV" in said
    assert "ViTCoP" in said


def test_bench_measures_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_demo(initialised_model(12), demo_processor(12), tmp_path)
    result = bench(*QUICK, "--model", tmp_path, "--method", "visionzip", "--attention", "eager", "--json")
    assert result.exit_code == 0, result.output
    stored: dict[str, Any] = json.loads(result.stdout)
    assert (stored["model"]["attention"], stored["visual_tokens"]) == ("eager", 144)
    assert [row["retained_tokens"] for row in stored["rows"]] == [None, 48, 32, 16]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "smal"], "--shape must be one of llava-1.5-7b, "),
        (["--shape", "small", "--model", "x"], "--shape must not be given with --model"),
        (["--shape", "small", "--method", "fastv,none"], "--method must be one of vitcop, fastv, "),
        (["--shape", "small", "--retain", "64,x"], "--retain must be a number of tokens"),
        (["--shape", "small", "--retain", "577"], "--retain must be at most the 576 visual tokens of a prompt"),
        (["--shape", "small", "--image-size", "336"], "--image-size must be width and height in pixels"),
        (["--shape", "small", "--image-size", "336x336"], "for a model that sees every image at 336 x 336"),
        (["--shape", "small", "--frames", "4"], "--frames must be left out for a model that reads no clips"),
        (["--shape", "small", "--dtype", "int8"], "--dtype must be auto, float32"),
        (["--shape", "small", "--attention", "none"], "--attention must be one that is installed, got 'none'"),
        (
            ["--shape", "small", "--attention", "flash_attention_2"],
            "flash_attention_2 must be used on CUDA",
        ),
        (["--shape", "small", "--out", "bench.txt"], "--out must be the name of a JSON file (.json)"),
    ],
)
def test_bench_names_a_mistake(arguments: list[str], said: str) -> None:
    result = bench("--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")
    assert result.stdout == ""


def test_bench_says_what_would_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3 * 2**30)
    result = bench("--device", "cpu", "--shape", "llava-1.5-7b")
    assert result.exit_code == 2
    assert (
        "must fit into the 3 GiB that are free on cpu, got llava-1.5-7b, whose weights take 13.2 GiB" in result.stderr
    )
    assert "in bfloat16 these do: medium, medium-next, medium-video, quarter, narrow, small, " in result.stderr


def test_bench_of_a_video_shape_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "entry_points", lambda **group: [])
    monkeypatch.delitem(families._FAMILIES, "LlavaNextVideoForConditionalGeneration", raising=False)
    result = bench("--device", "cpu", "--shape", "small-video")
    assert result.exit_code == 2
    assert "pip install vitcop-video" in result.stderr


def test_bench_keeps_a_result_that_is_there(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    out.write_text("precious")
    result = bench("--device", "cpu", "--shape", "small", "--out", out)
    assert result.exit_code == 2
    assert "--force overwrites it" in result.stderr.replace("\n", " ")
    assert out.read_text() == "precious"


def test_bench_in_brief_says_three_things_in_lines_and_bars() -> None:
    given = (*QUICK, "--shape", "small", "--method", "vitcop", "--retain", "1/9", "--new-tokens", "1", "--brief")
    result = bench(*given)
    assert result.exit_code == 0, result.output
    said = [" ".join(line.split()) for line in result.stdout.splitlines()]
    titles = ["time to the first token", "key-value cache", "MACs of the decoder layers"]
    assert [line for line in said if line in titles] == titles
    for title in titles:
        (line,) = [line for line in said if line.startswith(f"{title} ")]
        assert line.endswith("%)")
        whole, pruned = said[said.index(title) + 1 : said.index(title) + 3]
        assert whole.startswith("unpruned, 576 tokens █")
        assert pruned.startswith("ViTCoP, 63.25 tokens █")
    stored = json.loads(bench(*given, "--json").stdout)
    assert stored["command"].endswith("--brief")
    whole, pruned = stored["rows"]
    assert pruned["macs"] / whole["macs"] == pruned["share_of_macs"]
    assert (pruned["oracle"], pruned["parts"]) == (None, None)


def test_bench_of_the_host_compares_with_the_unpruned_model(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    given = ("--host", "--method", "vitcop,visionzip", "--retain", "8,2", "--repeats", "2", "--new-tokens", "3")
    result = bench(*given, "--out", out)
    assert result.exit_code == 0, result.output
    assert "narrow: 32 layers, float32 on cpu" in " ".join(result.stdout.split())
    assert "ViTCoP at 2: retained_tokens must be" in " ".join(result.stdout.split())
    stored = json.loads(out.read_text())
    assert stored["command"].startswith("vitcop bench --shape narrow --dtype float32 --device cpu")
    assert stored["command"].endswith("--host")
    assert {"packages", "processor"} <= set(stored["environment"])
    whole, *pruned = stored["rows"]
    assert (whole["prefill_ratio"], whole["token_ratio"]) == (1, 1)
    assert ("ViTCoP", 8) in [(row["name"], row["retained_tokens"]) for row in pruned]
    for row in pruned:
        for part in ("prefill", "token"):
            ratios = [own / other for own, other in zip(row[part], whole[part], strict=True)]
            assert row[f"{part}_ratio"] == pytest.approx(statistics.median(ratios))
            assert 0 < row[f"{part}_ratio"] < 5
