"""Files that were cut short: told wherever the container says how long it should be."""

from pathlib import Path

import pytest

from vitcop_video import VideoError, open_video
from vitcop_video.clips import ClipSettings, write_clip

FAST = {"deadline": "realtime", "cpu-used": "8"}
TELL = {
    "plain.mp4": ClipSettings(),
    "header-first.mp4": ClipSettings(container={"movflags": "faststart"}),
    "fragmented.mp4": ClipSettings(container={"movflags": "frag_keyframe+empty_moov"}),
    "indexed.mp4": ClipSettings(container={"movflags": "frag_keyframe+dash+default_base_moof+global_sidx"}),
    "plain.mov": ClipSettings(),
    "phone.3gp": ClipSettings(),
    "plain.mkv": ClipSettings(),
    "plain.webm": ClipSettings(codec="libvpx", options=FAST),
    "live.webm": ClipSettings(codec="libvpx", options=FAST, container={"live": "1"}),
    "plain.avi": ClipSettings(codec="mpeg4"),
    "plain.flv": ClipSettings(codec="flv"),
    "plain.ogv": ClipSettings(codec="libvpx", options=FAST),
    "plain.wmv": ClipSettings(codec="wmv2"),
    "plain.gif": ClipSettings(codec="gif", pixel_format="rgb8"),
}
SILENT = {
    "plain.ts": ClipSettings(),
    "plain.mpg": ClipSettings(codec="mpeg2video", rate=25),
}


@pytest.mark.parametrize("name", TELL)
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    whole = write_clip(tmp_path / name, TELL[name])
    assert open_video(whole).info.frames == 60
    content = whole.read_bytes()
    path = tmp_path / f"cut-{name}"
    for length in (*(round(share * len(content)) for share in (0.5, 0.9, 0.98, 0.997)), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(VideoError, match="is truncated") as caught:
            open_video(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", SILENT)
def test_a_stream_that_says_nothing_is_a_shorter_one(tmp_path: Path, name: str) -> None:
    whole = write_clip(tmp_path / name, SILENT[name])
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    assert 0 < open_video(whole).info.frames < 60


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mov"])
def test_no_byte_of_the_last_header_can_be_cut_off(tmp_path: Path, name: str) -> None:
    content = write_clip(tmp_path / name, TELL[name]).read_bytes()
    path = tmp_path / f"cut-{name}"
    begin = content.rfind(b"moov") - 4
    for length in range(begin, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(VideoError, match="is truncated"):
            open_video(path)


def test_a_gif_whose_last_byte_happens_to_be_the_trailer(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "clip.gif", TELL["plain.gif"]).read_bytes()
    place = content.index(b";", len(content) // 2)
    assert place < len(content) - 1
    path = tmp_path / "cut.gif"
    path.write_bytes(content[: place + 1])
    with pytest.raises(VideoError, match="no trailer"):
        open_video(path)


@pytest.mark.parametrize("name", ["plain.mp4", "plain.gif"])
def test_what_stands_after_the_end_is_no_fault(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, TELL[name])
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xffnote of a camera" * 9)
    assert open_video(path).info.frames == 60
