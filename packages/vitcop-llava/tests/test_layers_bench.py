"""The bench of layers runs, and stores what it was run on."""

import json
import statistics
from pathlib import Path

import pytest

from vitcop_llava.tools.benchmark import layers


@pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")
def test_bench_times_each_layer_beside_a_bare_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--shape", "small", "--layers", "8", "--retain", "64", "--repeats", "3", "--dtype", "float32"]
    layers.main([*sizes, "--out", str(tmp_path / "layers.json")])
    stored = json.loads((tmp_path / "layers.json").read_text())
    assert stored["command"] == (
        "python -m vitcop_llava.tools.benchmark.layers --shape small --layers 8 --retain 64 --text-tokens 60 --batch 1 "
        "--repeats 3 --dtype float32 --device cpu"
    )
    assert {"packages", "processor"} <= set(stored["environment"])
    assert [each["layer"] for each in stored["times"]] == [*range(8)]
    tokens = [each["tokens"] for each in stored["times"]]
    assert tokens == sorted(tokens, reverse=True)
    assert 60 < tokens[-1] < tokens[0] < 636
    for each in stored["times"]:
        assert len(each["pruned"]) == len(each["bare"]) == 3
        ratios = [one / other for one, other in zip(each["pruned"], each["bare"], strict=True)]
        assert each["ratio"] == pytest.approx(statistics.median(ratios))
    assert "in the prefill" in capsys.readouterr().out
