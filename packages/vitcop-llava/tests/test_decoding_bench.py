"""The bench of decoding runs every variant, and says whether their answers are the same."""

import json
from pathlib import Path

import pytest

from vitcop_llava.tools.benchmark import decoding

pytestmark = pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")


def test_bench_times_tokens_of_every_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (
        "--shape small --retain 64 --text-tokens 12 --batch 1 --tokens 6 --repeats 2 --modes dynamic static captured"
    )
    decoding.main([*given.split(), "--dtype", "float32", "--out", str(tmp_path / "decoding.json")])
    stored = json.loads((tmp_path / "decoding.json").read_text())
    assert stored["command"] == (
        f"python -m vitcop_llava.tools.benchmark.decoding {given} --dtype float32 --device cpu"
    )
    rows = stored["rows"]
    assert [(row["method"], row["mode"]) for row in rows] == [
        *((name, mode) for mode in ("dynamic", "static") for name in (None, "ViTCoP")),
        ("ViTCoP", "captured"),
    ]
    for row in rows:
        assert (len(row["prefill"]), len(row["token"])) == (2, 2 * 4)
        assert row["same_tokens"]
        assert row["over_floor"] > 0
        assert row["uncaptured"] is None
    for unpruned, pruned in ((0, 1), (2, 3), (2, 4)):
        assert rows[pruned]["cache_bytes"] < rows[unpruned]["cache_bytes"] / 2
    assert "of the weights' read" in capsys.readouterr().out
