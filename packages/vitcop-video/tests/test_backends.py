"""Choosing a backend, falling back from it, and the process that decord runs in."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from vitcop_video import VideoError, backend_status, open_video, read_video, soak
from vitcop_video.clips import ClipSettings, damage, write_clip
from vitcop_video.readers import choice, decord_reader, torchcodec_reader
from vitcop_video.readers.base import Backend, BackendError

Make = Callable[[str], Path]
needs_decord = pytest.mark.skipif(decord_reader.missing() is not None, reason=str(decord_reader.missing()))


def test_status_names_every_backend() -> None:
    status = backend_status()
    assert list(status) == ["pyav", "decord", "torchcodec"]
    assert status["pyav"] is None


def test_auto_is_the_first_that_is_here(clip: Make) -> None:
    assert read_video(clip("b-frames.mp4"), frames=1).info.backend == "pyav"


@pytest.mark.parametrize("module", [decord_reader, torchcodec_reader])
def test_a_backend_that_is_not_installed_is_refused_with_the_reason(
    clip: Make, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    missing = module.missing.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    name = module.BACKEND.name  # type: ignore[attr-defined]
    assert missing() == f"{name} is not installed"
    absent = Backend(name, missing, lambda index: None, choice.PYAV.decode)
    monkeypatch.setitem(choice.BACKENDS, name, absent)
    with pytest.raises(
        ValueError, match=f"backend must be one that can run here, got '{name}': {name} is not installed"
    ):
        read_video(clip("b-frames.mp4"), backend=name)


def test_a_backend_that_fails_is_replaced_and_named(clip: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise BackendError("it is a bad day")

    monkeypatch.setitem(choice.BACKENDS, "decord", Backend("decord", lambda: None, lambda index: None, fail))
    info = read_video(clip("b-frames.mp4"), backend="decord").info
    assert (info.backend, info.fallback) == ("pyav", "decord: it is a bad day")


@needs_decord
@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param("import os; os.abort()", r"ended without an answer \(signal 6\)", id="aborts"),
        pytest.param("import time; time.sleep(60)", "took longer than", id="hangs"),
        pytest.param("print('{}')", r"ended without an answer \(exit code 0\)", id="breaks off"),
        pytest.param('print(\'{"error": "no"}\')', "decord: no", id="fails"),
    ],
)
def test_a_worker_that_misbehaves_is_replaced_and_gone(
    tmp_path: Path, clip: Make, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    monkeypatch.setattr(decord_reader, "_WORKER", worker)
    monkeypatch.setattr(decord_reader, "SECONDS", 1.0)
    monkeypatch.setattr(decord_reader, "SECONDS_PER_FRAME", 0.0)
    begin, before = time.monotonic(), soak.reading().children
    read = read_video(clip("b-frames.mp4"), frames=2, backend="decord")
    assert time.monotonic() - begin < 20
    assert read.info.backend == "pyav"
    assert read.info.fallback is not None
    assert re.search(said, read.info.fallback)
    assert soak.reading().children == before


@needs_decord
def test_the_worker_has_a_limit_on_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Larger than what an allocator may have left over from loading libraries.
    path = write_clip(tmp_path / "large.mp4", ClipSettings(frames=4, width=1280, height=720))
    stacks = (os.cpu_count() or 1) * 2 * 9 * 2**20  # what it grants its threads: taken back, nothing is left
    monkeypatch.setattr(decord_reader, "BYTES", -stacks)
    info = read_video(path, frames=4, backend="decord").info
    assert info.backend == "pyav"
    assert "decord: " in (info.fallback or "")


@pytest.mark.parametrize("name", ["b-frames.mp4", "variable.mkv", "vp9.webm", "motion.avi"])
def test_damaged_files_end_in_frames_or_in_a_clear_error(tmp_path: Path, clip: Make, backend: str, name: str) -> None:
    """In this process: were a backend to crash, so would this test."""
    content = clip(name).read_bytes()
    refused = []
    for seed in range(10):
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(damage(content, seed))
        try:
            video = open_video(path, backend)
            assert video.frames([0, video.info.frames - 1]).frames.shape == (2, 90, 160, 3)
        except VideoError as error:
            refused.append((path, error))
    assert refused
    assert all(str(path) in str(error) for path, error in refused)


@needs_decord
def test_the_worker_imports_nothing_of_this_package() -> None:
    source = Path(decord_reader.__file__).with_name("decord_worker.py").read_text()
    assert "vitcop" not in source
    assert (
        subprocess.run([sys.executable, "-P", "-c", source], input=b"{}", capture_output=True, check=False).stdout
        == b'{"error": "\'bytes\'"}\n'
    )
