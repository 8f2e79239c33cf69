"""Files that this package writes: whole or not at all, and never over another one unless asked."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest

from vitcop_core import files
from vitcop_video import clips, open_video, support
from vitcop_video.clips import MUXERS, ClipSettings, write_clip, writing
from vitcop_video.demo.files import write_demo_clip, write_questions
from vitcop_video.demo.sheet import main as draw

SHORT = ClipSettings(frames=4, width=64, height=48, options={"bf": "0"})


def test_a_demo_clip_is_written_over_only_if_that_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    assert support.write_demo(0, path, overwrite=False)
    first = path.read_bytes()
    with pytest.raises(FileExistsError) as caught:
        support.write_demo(1, path, overwrite=False)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == first
    support.write_demo(1, path)
    assert path.read_bytes() != first
    assert [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_a_failure_leaves_what_was_there(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"before")

    def fail() -> None:
        with writing(path, options=options) as container:
            stream = container.add_stream("libx264", rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files.write_whole

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    @contextmanager
    def full(path: Path, *, overwrite: bool = True) -> Iterator[Any]:
        with whole(path, overwrite=overwrite) as stream:
            yield Full(stream)

    monkeypatch.setattr(clips, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        write_clip(tmp_path / "clip.mp4", SHORT)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".avi", ".ts", ".3gp", ".M4V"])
def test_the_container_follows_from_the_name(tmp_path: Path, ending: str) -> None:
    path = write_clip(tmp_path / f"clip{ending}", SHORT)
    assert MUXERS[ending.lower()].removesuffix("egts")[:2] in open_video(path).info.container


@pytest.mark.parametrize("name", ["clip", "clip.txt", "clip.mp4.bak"])
def test_names_that_say_no_container_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"path must end in one of \.mp4, "):
        write_demo_clip(tmp_path / name, 0)
    assert not [*tmp_path.iterdir()]


def test_questions_are_written_whole(tmp_path: Path) -> None:
    lines = write_questions(tmp_path / "folder", 2).read_text().splitlines()
    assert [open_video(json.loads(line)["image"]).info.frames for line in lines] == [8, 8]


def test_a_sheet_is_written_whole(tmp_path: Path) -> None:
    draw(["--out", str(tmp_path / "sheet.png")])
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert [each.name for each in tmp_path.iterdir()] == ["sheet.png"]
