"""What is no video, or not a whole one: a clear error, soon, in little memory."""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from vitcop_video import VideoError, open_video, read_video
from vitcop_video.clips import ClipSettings, write_clip
from vitcop_video.readers import mp4, scan
from vitcop_video.readers.base import Deadline
from vitcop_video.readers.forms import recognize

Make = Callable[[str], Path]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"Not a video.\n" * 99, "must be a video that can be read", id="text"),
        pytest.param(bytes(5000), "must be a video that can be read", id="zeros"),
        pytest.param(b"ffconcat version 1.0\nfile other.mp4\n", "must be a video that can be read", id="list of files"),
        pytest.param(
            b"#EXTM3U\n#EXTINF:2,\nother.ts\n#EXT-X-ENDLIST\n", "must be a video that can be read", id="playlist"
        ),
    ],
)
def test_refuses_content(tmp_path: Path, backend: str, content: bytes, said: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=said) as caught:
        read_video(path, backend=backend)
    assert str(path) in str(caught.value)


def test_refuses_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(VideoError, match="has no video in it"):
        read_video(path)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(IsADirectoryError, match="path must be a file, got the folder"):
        read_video(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must be an existing file"):
        read_video(tmp_path / "none.mp4")
    for odd in (pipe, Path("/dev/zero")):
        with pytest.raises(VideoError, match="a pipe, socket or device"):
            read_video(odd)


@pytest.mark.parametrize("address", ["https://example.org/clip.mp4", "rtsp://example.org/1", "file:///clip.mp4"])
def test_refuses_an_address(address: str) -> None:
    with pytest.raises(VideoError, match="not an address"):
        read_video(address)


def test_a_protocol_in_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Make) -> None:
    monkeypatch.chdir(tmp_path)
    Path("concat:clip.mp4").write_bytes(clip("b-frames.mp4").read_bytes())
    assert read_video("concat:clip.mp4", frames=1).indices.tolist() == [0]


def test_refuses_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "clip.mp4").write_bytes(b"content")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="path must be a file that you may read"):
        read_video(tmp_path / "clip.mp4")


@pytest.mark.parametrize("path", [None, 3, ["clip.mp4"]])
def test_refuses_what_is_no_path(path: object) -> None:
    with pytest.raises(TypeError, match="path must be a string or a path"):
        read_video(path)  # type: ignore[arg-type]


def test_refuses_a_name_that_is_none() -> None:
    with pytest.raises(VideoError, match="must be the name of a file"):
        read_video("a\0b.mp4")


@pytest.mark.parametrize("name", ["b-frames.mp4", "header-first.mp4", "variable.mkv", "motion.avi"])
def test_refuses_a_truncated_file(tmp_path: Path, clip: Make, backend: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(clip(name).read_bytes()[: clip(name).stat().st_size // 2])
    with pytest.raises(VideoError, match=r"truncated|which is none"):
        read_video(path, backend=backend)


@pytest.mark.parametrize("claimed", [1_000_000, 80_000_000, 2**32 - 1])
def test_refuses_a_header_that_claims_too_much(tmp_path: Path, clip: Make, claimed: int) -> None:
    content = bytearray(clip("motion.mov").read_bytes())
    sizes, chunks, times = (content.find(kind) for kind in (b"stsz", b"stsc", b"stts"))
    content[sizes + 8 : sizes + 16] = struct.pack(">II", 10, claimed)
    content[chunks + 16 : chunks + 20] = content[times + 12 : times + 16] = struct.pack(">I", claimed)
    path = tmp_path / "claims.mov"
    path.write_bytes(content)
    begin = time.monotonic()
    with pytest.raises(VideoError, match=rf"promises {claimed} frames|is damaged|no frame that can be decoded|MiB"):
        open_video(path)
    assert time.monotonic() - begin < 5


def test_absurdly_many_boxes_are_read_where_memory_is_limited(tmp_path: Path, clip: Make) -> None:
    content = clip("header-first.mp4").read_bytes()
    path = tmp_path / "boxes.mp4"
    path.write_bytes(content + b"\0\0\0\x08free" * (mp4.MAX_BOXES + 1))
    assert not recognize(path, Deadline()).is_plain
    assert open_video(path).info.frames == 60


def test_refuses_large_frames_before_decoding(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "large.avi", ClipSettings(frames=2, codec="png", pixel_format="rgb24"))
    content = path.read_bytes()
    assert struct.pack("<II", 160, 90) in content
    assert struct.pack(">II", 160, 90) in content
    content = content.replace(struct.pack("<II", 160, 90), struct.pack("<II", 30000, 30000))
    path.write_bytes(content.replace(struct.pack(">II", 160, 90), struct.pack(">II", 30000, 30000)))
    begin = time.monotonic()
    with pytest.raises(VideoError, match=r"megapixels|which is none|no frame that can be decoded"):
        open_video(path)
    assert time.monotonic() - begin < 5


def test_refuses_a_long_clip(clip: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_PACKETS", 30)
    with pytest.raises(VideoError, match="must have at most 30 frames"):
        open_video(clip("b-frames.mp4"))


def test_refuses_an_avi_that_cannot_tell_the_order(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", ClipSettings(options={"bf": "3"}))
    with pytest.raises(VideoError, match="AVI with B-frames"):
        open_video(path)


@pytest.mark.parametrize("name", ["variable.mkv", "motion.avi", "vp9.webm"])
def test_a_broken_index_is_read_around_or_refused(tmp_path: Path, clip: Make, name: str) -> None:
    """An index inside the file is used to seek; wrong frames must not come of a wrong one."""
    content = bytearray(clip(name).read_bytes())
    whole = open_video(clip(name)).frames([0, 50, 59])
    at = content.rfind(b"idx1" if name.endswith("avi") else b"\x1c\x53\xbb\x6b")
    assert at > 0
    for place in range(at + 8, min(at + 200, len(content)), 5):
        content[place] ^= 0x5A
    path = tmp_path / name
    path.write_bytes(content)
    try:
        read = open_video(path).frames([0, 50, 59])
    except VideoError:
        return
    assert np.array_equal(read.frames, whole.frames)


def test_refuses_a_clip_that_changes_size(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{width}.ts", ClipSettings(frames=30, width=width)) for width in (160, 320)]
    path = tmp_path / "both.ts"
    with av.open(str(path), "w") as both:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or both.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + 90000 * number, packet.dts + 90000 * number
                    packet.stream = stream
                    both.mux(packet)
    video = open_video(path)
    assert len(video.frames([0, 29]).frames) == 2
    with pytest.raises(VideoError, match=r"must have frames of one size, 160 x 90, got .* frame 45"):
        video.frames([45])


def test_a_damaged_frame_is_named(tmp_path: Path, clip: Make) -> None:
    source = clip("motion.mov")
    with av.open(str(source)) as container:
        packet = next(each for number, each in enumerate(container.demux(video=0)) if number == 20)
        start, size = packet.pos or 0, packet.size
    content = bytearray(source.read_bytes())
    content[start : start + size] = bytes(size)
    path = tmp_path / "damaged.mov"
    path.write_bytes(content)
    video = open_video(path)
    assert len(video.frames([10, 30]).frames) == 2
    with pytest.raises(VideoError, match=r"is damaged at frame 20, at 0\.667 s, or before"):
        video.frames([20])
