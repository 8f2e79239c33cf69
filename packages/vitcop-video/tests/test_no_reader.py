"""Without a decoder the model, its processor and every import work; reading a file is refused in a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from vitcop_video import VideoError, backend_status, read_video
from vitcop_video.readers import library

BLOCKED = """
import sys
for name in ("av", "decord", "torchcodec"):
    sys.modules[name] = None  # then it cannot be found, nor imported
"""
FAMILY = (
    BLOCKED
    + """
import numpy as np, torch
import vitcop_video, vitcop_video.family, vitcop_video.processing, vitcop_video.support, vitcop_video.sampling
from vitcop_llava import ViTCoP, prune
from vitcop_video import ClipProcessor, VideoError, backend_status, open_video, read_video
from vitcop_video.demo.build import demo_model, demo_processor
from vitcop_video.demo.events import render_clip, sample_clip
model, processor = demo_model().eval(), demo_processor()
frames = np.stack([*render_clip(sample_clip(0), 84)]).astype(np.uint8)
inputs = processor("<video> what happens", videos=[frames])
with torch.no_grad(), prune(model, ViTCoP(retention_ratio=1 / 3)) as pruner:
    model(**inputs)
assert pruner.report is not None
assert "PyAV cannot be imported" in backend_status()["pyav"]
for call in (read_video, open_video):
    try:
        call(sys.argv[1])
    except VideoError as error:
        print(error)
from pathlib import Path
from vitcop_llava.tools.media.video_support import Sampling
try:
    vitcop_video.support.read_clip(Path(sys.argv[1]), Sampling())
except ValueError as error:
    print(error)
"""
)
OLD = """
import sys, types
av = types.ModuleType("av")
av.__version__ = "12.3.0"
sys.modules["av"] = av
from vitcop_video import VideoError, read_video
try:
    read_video(sys.argv[1])
except VideoError as error:
    print(error)
"""


def run(script: str, path: Path) -> list[str]:
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_family_works_without_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"content")
    said = run(FAMILY, path)
    assert len(said) == 3
    for line in said:
        assert line.startswith("path must be read with PyAV, got none: PyAV cannot be imported (import of av")


def test_an_old_reader_is_told(tmp_path: Path) -> None:
    (line,) = run(OLD, tmp_path / "clip.mp4")
    assert (
        line
        == "path must be read with PyAV, got none: PyAV must be version 15 or newer, got 12.3.0; pip install 'av>=15'"
    )


def test_every_backend_needs_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing", lambda: "it is away")
    for name in ("auto", *backend_status()):
        with pytest.raises(VideoError, match=r"must be read with PyAV.*it is away"):
            read_video(tmp_path / "clip.mp4", backend=name)
