"""The bench of reuse runs, and stores what it was run on."""

import json
import statistics
from pathlib import Path

import pytest

from vitcop_llava.tools.benchmark import reuse


@pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")
def test_bench_stores_times_settings_and_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--questions", "3", "--question-tokens", "4", "--new-tokens", "2", "--repeats", "2", "--dtype", "float32"]
    reuse.main(["--shape", "small", *sizes, "--out", str(tmp_path / "reuse.json")])
    stored = json.loads((tmp_path / "reuse.json").read_text())
    assert stored["sizes"] == {"questions": 3, "question_tokens": 4, "new_tokens": 2}
    assert (stored["shape"], stored["dtype"], stored["retained_tokens"], stored["visual_tokens"]) == (
        "small",
        "float32",
        64,
        576,
    )
    assert all(len(stored[name]) == 2 and min(stored[name]) > 0 for name in ("unpruned", "pruned", "encode", "answer"))
    ratio = statistics.median(stored["reuse"]) / statistics.median(stored["pruned"])
    assert stored["over_pruned"] == pytest.approx(ratio)
    assert {"packages", "processor"} <= set(stored["environment"])
    assert stored["command"].startswith(
        "python -m vitcop_llava.tools.benchmark.reuse --shape small --retain 64 --questions 3 "
    )
    assert "3 questions, reuse" in capsys.readouterr().out
