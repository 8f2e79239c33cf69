"""What reading a picture costs at most: the worst file of each format that is still read, with its processor."""

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcop_llava.tools.media.images import MAX_PIXELS, ImageError, read_image
from vitcop_llava.tools.media.jpeg_files import MAX_SEGMENTS, MAX_VISITS
from vitcop_llava.tools.media.picture_files import MAX_BLOCKS, MAX_RLE_BYTES

SIDE = 6320
assert SIDE**2 <= MAX_PIXELS < (SIDE + 10) ** 2
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

# Everything is imported before it forks, so that the child's peak is that of one picture alone.
MEASURE = """
import json, os, re, resource, sys, time
from vitcop_llava.tools.media.images import read_image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
import torch
torch.set_num_threads(1)
points = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
process = LlavaNextImageProcessorPil(image_grid_pinpoints=points)
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
for line in sys.stdin:
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            limit = status("VmSize") + 2**30 + 2**27
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            before, start = status("VmHWM"), time.process_time()
            image = read_image(line.rstrip())
            process(image, return_tensors="pt")
            found = {"bytes": status("VmHWM") - before, "seconds": time.process_time() - start, "size": image.size}
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    print(os.read(reader, 10000).decode(), flush=True)
    os.close(reader)
    os.wait()
"""


@pytest.fixture(scope="module")
def measure() -> Iterator[Callable[[Path], dict[str, Any]]]:
    """What reading a file takes, in a process that has done nothing else."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    command = [sys.executable, "-W", "ignore", "-c", MEASURE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def ask(path: Path) -> dict[str, Any]:
            child.stdin.write(f"{path}\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            found: dict[str, Any] = json.loads(child.stdout.readline())  # type: ignore[union-attr]
            return found

        yield ask
        child.stdin.close()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(depth: int, color: int, *extra: bytes, side: int = SIDE) -> bytes:
    """A square of nothing, every row by the slowest filter."""
    row = b"\4" + bytes(-(-side * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] // 8))
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def orientation(value: int) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x0112, 3, 1, value, 0) + bytes(4)


def saved(kind: str, image: Image.Image, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def jpeg(mode: str, width: int, height: int, **how: Any) -> bytes:
    tile = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    image = Image.new("RGB", (width, height))
    image.paste(tile, (0, 0))
    return saved("JPEG", image.convert(mode), **how)


def with_scans(content: bytes, count: int, place: int = -1) -> bytes:
    """The file with one of its scans as often again; -5 is one of those that take longest."""
    scans = [match.start() for match in MARKER.finditer(content) if content[match.end() - 1] == 0xDA] + [
        len(content) - 2
    ]
    start, stop = scans[place - 1], scans[place]
    tables = content.rfind(b"\xff\xc4", 0, start)  # what the next scan needs stands between the two
    scan = content[start : MARKER.search(content, start + 12).start()]  # type: ignore[union-attr]
    assert tables > 0
    return content[:stop] + scan * count + content[stop:]


def many_scans() -> bytes:
    content = jpeg("L", SIDE, SIDE, progressive=True)
    return with_scans(content, MAX_VISITS // (SIDE // 8) ** 2 - 12)


def rle(width: int, height: int, content: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(content), 0, 0, 256, 0)
    colors = b"".join(bytes([255 - value, value, 7, 0]) for value in range(256))
    return struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(content), 0, 0, 54 + 1024) + head + colors + content


WORST: dict[str, Callable[[], bytes]] = {
    "png-rgba": lambda: png(8, 6, chunk(b"eXIf", orientation(6)[6:])),
    "png-rgba-16": lambda: png(16, 6),
    "png-grey-16": lambda: png(16, 0, chunk(b"eXIf", orientation(5)[6:])),
    "png-grey-alpha": lambda: png(8, 4),
    "png-palette-clear": lambda: png(8, 3, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(256))),
    "png-chunks": lambda: png(8, 0, chunk(b"tEXt", b"a\0b") * (MAX_BLOCKS - 10), side=3000),
    "png-bombs": lambda: png(8, 2, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))] * 400, side=3000),
    "webp-lossless": lambda: saved(
        "WEBP", Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 4)), lossless=True, method=0, exif=orientation(8)
    ),
    "gif": lambda: saved("GIF", Image.new("P", (SIDE, SIDE)), transparency=0),
    "bmp": lambda: saved("BMP", Image.new("RGB", (4700, 4700))),
    "bmp-runs": lambda: rle(3160, 3160, (b"\1\2" * 600 + b"\xff\2" * 11 + b"\0\0") * 3160),
    "bmp-lines": lambda: rle(3160, 3160, b"\1\2\0\0" * 3160),
    "jpeg-baseline": lambda: jpeg("RGB", 16320, 12240, quality=50),
    "jpeg-progressive": lambda: jpeg("RGB", 10000, 10000, progressive=True, exif=orientation(6)),
    "jpeg-cmyk": lambda: jpeg("CMYK", SIDE, SIDE, progressive=True, subsampling=0),
    "jpeg-scans": many_scans,
    "jpeg-exif": lambda: jpeg("RGB", 3000, 3000).replace(
        b"\xff\xdb", (b"\xff\xe1\xff\xff" + orientation(6).ljust(65533, b"x")) * 960 + b"\xff\xdb", 1
    ),
}


@pytest.mark.parametrize("kind", WORST)
def test_worst_picture_takes_little(measure: Callable[[Path], dict[str, Any]], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(WORST[kind]())
    found = measure(path)
    assert "error" not in found, found
    assert found["bytes"] <= 2**30
    assert found["seconds"] <= 10


TOO_MUCH: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (
        lambda: with_scans(jpeg("L", 2000, 2000, progressive=True), 1000),
        "must have scans that go through at most 30 million blocks",
    ),
    "scans-in-color": (
        lambda: with_scans(jpeg("RGB", 2000, 2000, progressive=True, subsampling=0), 1000),
        "in 1,010 scans",
    ),
    "progressive": (lambda: jpeg("RGB", 12000, 9000, progressive=True, subsampling=0), "as a progressive JPEG file"),
    "segments": (
        lambda: jpeg("L", 16, 16).replace(b"\xff\xdb", b"\xff\xfe\0\2" * MAX_SEGMENTS + b"\xff\xdb", 1),
        "at most 10,000 marker segments",
    ),
    "tables": (
        lambda: jpeg("L", 16, 16).replace(b"\xff\xda", b"\xff\xdd\0\4\0\0" * MAX_SEGMENTS + b"\xff\xda", 1),
        "at most 10,000 marker segments",
    ),
    "chunks": (lambda: png(8, 0, chunk(b"tEXt", b"a\0b") * MAX_BLOCKS, side=8), "at most 100,000 chunks"),
    "runs": (lambda: rle(5000, 5000, b"\xff\2" * 98040), "at most 10 megapixels in 4 MiB as a run-length coded"),
    "run-bytes": (lambda: rle(500, 500, b"\1\2" * MAX_RLE_BYTES), "at most 10 megapixels in 4 MiB as a run-length"),
    "gif-extensions": (
        lambda: saved("GIF", Image.new("P", (8, 8))).replace(b",\0\0\0\0", b"!\xfe\0" * MAX_BLOCKS + b",\0\0\0\0", 1),
        "at most 100,000 blocks",
    ),
    "gif-comment": (
        lambda: saved("GIF", Image.new("P", (8, 8))).replace(
            b",\0\0\0\0", b"!\xfe" + b"\1x" * MAX_BLOCKS + b"\0,\0\0\0\0", 1
        ),
        "at most 100,000 blocks",
    ),
    "webp-chunks": (
        lambda: saved("WEBP", Image.new("RGB", (8, 8))) + b"ABCD\0\0\0\0" * MAX_BLOCKS,
        "at most 100,000 chunks",
    ),
    "webp-canvas": (
        lambda: b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(10),
        "at most 40 megapixels, got 16383 x 16383",
    ),
    "webp-large-canvas": (
        lambda: b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\x3f" * 2,
        "at most 40 megapixels, got 4194304 x 4194304",
    ),
    "gif-canvas": (
        lambda: saved("GIF", Image.new("P", (8, 8))).replace(b",\0\0\0\0\x08\0\x08\0", b",\0\xf0\0\xf0\x08\0\x08\0"),
        "at most 40 megapixels, got 61448 x 61448",
    ),
    "jpeg-pixels": (
        lambda: re.sub(rb"(\xff\xc0..\x08)....", lambda m: m[1] + b"\xff\0" * 2, jpeg("L", 16, 16), flags=re.S),
        "at most 200 megapixels, got 65280 x 65280",
    ),
    "arithmetic": (lambda: jpeg("L", 16, 16).replace(b"\xff\xc0", b"\xff\xc9"), "one in arithmetic coding"),
    "arithmetic-progressive": (lambda: jpeg("L", 16, 16).replace(b"\xff\xc0", b"\xff\xca"), "one in arithmetic coding"),
    "lossless": (lambda: jpeg("L", 16, 16).replace(b"\xff\xc0", b"\xff\xc3"), "one in lossless or hierarchical"),
    "layers": (
        lambda: re.sub(rb"(\xff\xc0\0.{10})", lambda m: m[1] * 2, jpeg("L", 16, 16), flags=re.S),
        "must hold one picture, got several layers",
    ),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_picture_that_takes_too_much_is_refused_with_a_reason(tmp_path: Path, kind: str) -> None:
    make, said = TOO_MUCH[kind]
    (tmp_path / "image").write_bytes(make())
    with pytest.raises(ImageError, match=f"image .*{re.escape(said)}"):
        read_image(tmp_path / "image")
