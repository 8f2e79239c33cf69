"""What a video may take: a GiB beside the interpreter and its libraries, whatever the file claims."""

import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from vitcop_video import VideoError, open_video, read_video
from vitcop_video.clips import ClipSettings, write_clip
from vitcop_video.readers import base, confined, memory, scan
from vitcop_video.readers.base import Deadline
from vitcop_video.readers.forms import recognize

Make = Callable[[str], Path]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as Linux has them")

PEAK = """
import json, os, sys, threading, time
from pathlib import Path
from vitcop_video import open_video
import av, numpy, vitcop_video.readers.pyav_reader
def held(process):
    try:
        return int(Path(f"/proc/{process}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0
def children():
    for task in Path("/proc/self/task").iterdir():
        try:
            yield from (task / "children").read_text().split()
        except OSError:
            pass
before, most, reading = held("self"), 0, True
def watch():
    global most
    while reading:
        most = max(most, held("self") - before + sum(map(held, children())))
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
try:
    video = open_video(sys.argv[1], time_limit=None)
    frame = video.info.width * video.info.height * 3
    count = min(video.info.frames, max(1, int(sys.argv[2]) // frame))
    said = f"{len(video.frames([n * video.info.frames // count for n in range(count)]).frames)} frames"
except ValueError as error:
    said = str(error)
reading = False
watcher.join()
print(json.dumps([most, said]))
"""


def peak(path: Path, size: int = 0) -> tuple[int, str]:
    """Bytes that reading takes at most in all processes, and what came of it."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(size)], capture_output=True, text=True, check=True, timeout=120
    )
    most, said = json.loads(result.stdout)
    return most, said


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def boxes(content: bytes) -> Iterator[bytes]:
    while content:
        length = int.from_bytes(content[:4], "big")
        yield content[:length]
        content = content[length:]


def claiming(source: Path, claimed: int) -> tuple[bytes, bytes]:
    """What stands before the header of a MOV of one frame, and its header, claiming so many frames of a byte each."""
    content = bytearray(source.read_bytes())
    sizes, chunks, times = (content.find(kind) for kind in (b"stsz", b"stsc", b"stts"))
    content[sizes + 8 : sizes + 16] = struct.pack(">II", 1, claimed)
    content[chunks + 16 : chunks + 20] = content[times + 12 : times + 16] = struct.pack(">I", claimed)
    parts = [*boxes(bytes(content))]
    return b"".join(part for part in parts if part[4:8] != b"moov"), next(p for p in parts if p[4:8] == b"moov")


def track(header: bytes) -> bytes:
    return next(part for part in boxes(header[8:]) if part[4:8] == b"trak")


HIDDEN: dict[str, Callable[[bytes], bytes]] = {
    "as it should be": lambda moov: moov,
    "two tracks": lambda moov: box(b"moov", moov[8:], track(moov)),
    "compressed": lambda moov: box(
        b"moov",
        box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", len(moov)), zlib.compress(moov))),
    ),
    "inside udta": lambda moov: box(b"udta", moov),
    "inside the header's udta": lambda moov: box(b"moov", box(b"udta", moov)),
    "size raised": lambda moov: struct.pack(">I", len(moov) + 10**6) + moov[4:],
    **{
        f"inside {kind}": lambda moov, kind=kind: box(b"moov", box(kind.encode(), moov[8:]))  # type: ignore[misc]
        for kind in ("mvex", "tref", "wave", "meta", "free", "hoov", "mine")
    },
    **{
        f"header inside {kind}": lambda moov, kind=kind: box(kind.encode(), moov)  # type: ignore[misc]
        for kind in ("free", "hoov", "meta", "wave", "mine")
    },
}


@pytest.mark.parametrize("claimed", [15_000_000, 80_000_000, 170_000_000])
@pytest.mark.parametrize("how", HIDDEN)
def test_claims_are_not_believed(tmp_path: Path, how: str, claimed: int) -> None:
    source = write_clip(tmp_path / "one.mov", ClipSettings(frames=1, codec="mjpeg", pixel_format="yuvj420p"))
    before, moov = claiming(source, claimed)
    path = tmp_path / "claims.mov"
    path.write_bytes(before + HIDDEN[how](moov))
    assert not recognize(path, Deadline()).is_plain
    begin = time.monotonic()
    with pytest.raises(VideoError, match=r"claims\.mov"):
        open_video(path)
    assert time.monotonic() - begin < 9


def fragments(folder: Path, run: bytes) -> bytes:
    content = write_clip(folder / "f.mp4", ClipSettings(frames=2, container={"movflags": "frag_keyframe+empty_moov"}))
    start = b"".join(part for part in boxes(content.read_bytes()) if part[4:8] in (b"ftyp", b"moov"))
    header = box(b"tfhd", struct.pack(">IIIII", 0x38, 1, 1000, 1, 0x02000000))
    return start + box(b"moof", box(b"mfhd", bytes(8)), box(b"traf", header, run)) + box(b"mdat", bytes(64))


@pytest.mark.parametrize("count", [20_000_000, 200_000_000])
@pytest.mark.parametrize("runs", [1, 3])
def test_runs_without_fields_are_not_believed(tmp_path: Path, count: int, runs: int) -> None:
    path = tmp_path / "claims.mp4"
    path.write_bytes(fragments(tmp_path, runs * box(b"trun", struct.pack(">II", 0, count))))
    assert not recognize(path, Deadline()).is_plain
    most, said = peak(path)
    assert most < 2**30
    assert "claims.mp4" in said


@pytest.mark.parametrize("how", ["as it should be", "compressed", "two tracks"])
def test_a_kilobyte_takes_no_gigabytes(tmp_path: Path, how: str) -> None:
    source = write_clip(tmp_path / "one.mov", ClipSettings(frames=1, codec="mjpeg", pixel_format="yuvj420p"))
    before, moov = claiming(source, 25_000_000)
    path = tmp_path / "claims.mov"
    path.write_bytes(before + HIDDEN[how](moov))
    most, said = peak(path)
    assert most < 2**30
    assert "claims.mov" in said


def test_edits_that_multiply_are_not_believed(tmp_path: Path, clip: Make) -> None:
    content = clip("header-first.mp4").read_bytes()
    at = content.find(b"elst") - 4
    old = content[at : at + int.from_bytes(content[at : at + 4], "big")]
    edits = old[8:12] + struct.pack(">I", 100_000) + 100_000 * old[16:28]
    grown = box(b"elst", edits)
    for kind in (b"edts", b"trak", b"moov"):
        place = content.find(kind) - 4
        length = int.from_bytes(content[place : place + 4], "big") + len(grown) - len(old)
        content = content[:place] + struct.pack(">I", length) + content[place + 4 :]
    path = tmp_path / "edits.mp4"
    path.write_bytes(content.replace(old, grown))
    assert not recognize(path, Deadline()).is_plain
    most, _ = peak(path)
    assert most < 2**30


def ebml(kind: str, content: bytes) -> bytes:
    return bytes.fromhex(kind) + struct.pack(">Q", len(content) | 1 << 56) + content


def test_a_header_of_a_million_tracks_is_read_where_memory_is_limited(tmp_path: Path) -> None:
    start = ebml("1a45dfa3", bytes.fromhex("4282") + b"\x88matroska")
    path = tmp_path / "tracks.mkv"
    path.write_bytes(start + ebml("18538067", ebml("1654ae6b", b"\xae\x80" * 2_000_000)))
    assert not recognize(path, Deadline()).is_plain
    most, said = peak(path)
    assert most < 2**30
    assert "tracks.mkv" in said


def test_compressed_frames_of_matroska_are_read_where_memory_is_limited(tmp_path: Path, clip: Make) -> None:
    content = clip("variable.mkv").read_bytes()
    assert recognize(clip("variable.mkv"), Deadline()).is_plain
    path = tmp_path / "packed.mkv"
    at = content.find(bytes.fromhex("1654ae6b"), content.find(bytes.fromhex("1654ae6b")) + 4)  # not the list's
    assert at > 0
    marked = bytearray(content)
    marked[at + 20 : at + 22] = b"\x6d\x80"
    path.write_bytes(marked)
    assert not recognize(path, Deadline()).is_plain


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int, int], Path]:
    """A clip of large frames, each predicted from as many as may be."""
    folder = tmp_path_factory.mktemp("huge")

    def make(width: int, height: int, frames: int) -> Path:
        path = folder / f"{width}.mp4"
        if not path.exists():
            options = {"preset": "ultrafast", "x264-params": "ref=16:level=6.2:bframes=0"}
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=25, options=options)
                stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 250
                blocks = np.random.default_rng(0).integers(0, 255, (height // 64 + 1, width // 64 + 1, 3), np.uint8)
                image = blocks.repeat(64, 0).repeat(64, 1)[:height, :width]
                for number in range(frames):
                    frame = av.VideoFrame.from_ndarray(np.roll(image, 8 * number, 1), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        return path

    return make


@pytest.mark.parametrize(
    ("width", "height", "frames", "size"),
    [(1920, 1080, 45, base.MAX_BYTES), (3840, 2160, 24, base.MAX_BYTES), (8192, 4320, 12, 0), (8192, 4320, 12, 2**29)],
)
def test_large_frames_take_a_gib_in_all(
    huge: Callable[[int, int, int], Path], width: int, height: int, frames: int, size: int
) -> None:
    most, said = peak(huge(width, height, frames), size)
    assert most < 2**30
    assert said.endswith(" frames") or "ask for fewer frames" in said


@pytest.mark.parametrize("name", ["b-frames.mp4", "turned-90.mp4", "hevc.mp4", "stream.ts", "vp9.webm", "ten-bit.mp4"])
def test_a_confined_process_gives_the_same_frames(clip: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = read_video(clip(name), frames=5)
    monkeypatch.setattr(scan, "PLAIN_PIXELS", 100)
    there = open_video(clip(name))
    assert there._index.is_confined
    read = there.frames(here.indices.tolist())
    assert np.array_equal(read.frames, here.frames)
    assert np.array_equal(there.info.seconds, here.info.seconds)
    assert np.array_equal(there.info.key_frames, here.info.key_frames)


def test_too_little_memory_is_said(clip: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "confined_bytes", lambda result: -(2**24))
    with pytest.raises(VideoError, match=r"takes more|can be read"):
        open_video(clip("stream.ts"))


def test_a_system_without_limits_is_told(clip: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    source = confined._WORKER.read_text()
    worker.write_text(source.replace("    import resource\n", "    import no_resource as resource\n"))
    monkeypatch.setattr(confined, "_WORKER", worker)
    with pytest.raises(VideoError, match="this system cannot limit the memory of a process"):
        open_video(clip("stream.ts"))


def test_threads_follow_the_size_of_frames(clip: Make) -> None:
    index = open_video(clip("b-frames.mp4"))._index
    assert memory.plain_threads(index, 0) == memory._cores()
    large = type(index)(**{**vars(index), "width": 3840, "height": 2160})
    assert memory.plain_threads(large, 0) == 0
    assert memory.confined_threads(large, memory.confined_bytes(0)) >= 1


def test_no_path_hangs(tmp_path: Path) -> None:
    for device in ("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem"):
        if Path(device).exists():
            with pytest.raises((VideoError, OSError)):
                open_video(device)
