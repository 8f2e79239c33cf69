"""The bench of the tower runs every variant, and stores what it was run on."""

import json
import statistics
from pathlib import Path

import pytest

from vitcop_llava.tools.benchmark import tower


@pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")
def test_bench_times_the_tower_of_each_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tower.main(["--tower", "small", "--rounds", "3", "--dtype", "float32", "--out", str(tmp_path / "tower.json")])
    stored = json.loads((tmp_path / "tower.json").read_text())
    assert stored["command"] == (
        "python -m vitcop_llava.tools.benchmark.tower --tower small --retain 64 --images 1 --rounds 3 --dtype float32 "
        "--device cpu"
    )
    assert {"packages", "processor"} <= set(stored["environment"])
    assert [row["method"] for row in stored["rows"]] == [None, "ViTCoP", "VisionZip", "FastV"]
    unpruned = stored["rows"][0]
    for row in stored["rows"]:
        for part in ("tower", "encoding"):
            assert len(row[part]) == 3
            share = statistics.median(row[part]) / statistics.median(unpruned[part])
            assert row["over_unpruned"][part] == pytest.approx(share)
        assert all(own < whole for own, whole in zip(row["tower"], row["encoding"], strict=True))
    assert "of unpruned" in capsys.readouterr().out
