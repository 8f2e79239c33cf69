"""Hundreds of readings of good and bad files leave nothing behind."""

import json
import sys
from pathlib import Path

import pytest

from vitcop_video import backend_status, bench, read_video, soak
from vitcop_video.clips import ClipSettings, write_clip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def _each_damage_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five copies of a good file are damaged in all five ways; eight would be read three times each."""
    monkeypatch.setattr(soak, "DAMAGED_COPIES", 5)


@pytest.mark.parametrize(
    ("reader", "cycles"), [("pyav", 120), ("torchcodec", 120), ("decord", 40)], ids=["pyav", "torchcodec", "decord"]
)
def test_reading_over_and_over_leaves_nothing(tmp_path: Path, reader: str, cycles: int) -> None:
    if reason := backend_status()[reader]:
        pytest.skip(reason)
    result = soak.soak(soak.make_folder(tmp_path), cycles, reader)
    assert sum(result.outcomes.values()) == cycles
    assert {"read", "VideoError", "FileNotFoundError", "IsADirectoryError"} <= set(result.outcomes)
    assert result.after.handles == result.before.handles
    assert result.after.threads <= result.before.threads
    assert result.after.children == result.before.children
    assert result.after.resident - result.before.resident < 16 * 2**20


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    """Reading eight frames of twenty times as many takes no more of what is not the index."""
    paths = [write_clip(tmp_path / f"{frames}.mp4", ClipSettings(frames=frames)) for frames in (60, 1200)]
    held = []
    for path in paths:
        for _ in range(3):
            read_video(path)
        held.append(soak.reading().resident)
    assert held[1] - held[0] < 8 * 2**20


def test_commands_store_what_they_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CLIP", ClipSettings(frames=60, options={"bf": "3"}))
    bench.main(["--frames", "4", "--rounds", "1", "--out", str(tmp_path / "bench.json")])
    soak.main(["--cycles", "5", "--backend", "pyav", "--out", str(tmp_path / "soak.json")])
    measured = json.loads((tmp_path / "bench.json").read_text())
    assert {row["frames"] for row in measured["rows"]} == {4}
    assert min(row["over_fastest_direct"] for row in measured["rows"] if row["is_direct"]) == 1
    soaked = json.loads((tmp_path / "soak.json").read_text())
    assert soaked["cycles"] == 5
    for stored, module in ((measured, "bench"), (soaked, "soak")):
        assert stored["command"].startswith(f"python -m vitcop_video.{module} ")
        assert stored["environment"]["packages"]["av"]
