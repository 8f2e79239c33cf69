"""The benchmark of the package measures all variants, stores them, and prints its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitcop_vllm.bench import main


def test_variants_are_measured_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "served.json"
    small = "--layers 2 --width 64 --grid 8 --retain 16 --rounds 1 --tokens 2".split()
    main([*small, "--out", str(out)])
    stored = json.loads(out.read_text())
    rows = {(row["method"], row["tokens"]): row for row in stored["rows"]}
    assert set(rows) == {(None, 0), ("earlyvitcop", 16), ("visionzip", 16)}
    whole = rows[None, 0]
    for row in stored["rows"]:
        assert [len(row[name]) for name in ("first", "alone", "together")] == [1, 1, 1]
        assert whole["prompt"] - row["prompt"] == (64 - row["tokens"] if row["method"] else 0)
    assert "vitcop_vllm.bench --layers 2" in stored["command"]
    printed = capsys.readouterr().out
    assert "| earlyvitcop, 16 |" in printed
    assert stored["environment"]["packages"]["vitcop-vllm"]
