"""Prefix files that are damaged, hostile or half-written: an error each time, soon, and never a wrong answer."""

import json
import os
import random
import re
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vitcop_llava
from vitcop_llava import ImagePrefix
from vitcop_llava.prefix.sealed_file import MAX_HEADER, DamageError, read_header, read_tensors, write_sealed

Make = Callable[..., Tensor]


@pytest.fixture(scope="module")
def prefix(model: Any, prompt: Make, pictures: Make, budget: Any) -> ImagePrefix:
    with torch.no_grad():
        return vitcop_llava.encode_image(model, prompt(3, "image", 2), pictures(), method=budget())


@pytest.fixture(scope="module")
def whole(prefix: ImagePrefix, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a file."""
    path = tmp_path_factory.mktemp("whole") / "image.safetensors"
    prefix.save(path)
    return path.read_bytes()


@pytest.fixture
def refuse(model: Any, budget: Any, tmp_path: Path) -> Callable[[bytes], str]:
    """What loading a damaged file says."""

    def check(content: bytes) -> str:
        path = tmp_path / "damaged"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path ") as caught:
            ImagePrefix.load(path, model, budget())
        return str(caught.value)

    return check


def header_size(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_file_is_one_of_safetensors(prefix: ImagePrefix, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(whole)
    tensors = load_file(tmp_path / "image")
    assert torch.equal(tensors["input_ids"], prefix.input_ids[0])
    cache: Any = prefix.cache()
    assert torch.equal(tensors["keys.3"], cache.layers[3].keys[0])


def test_flipped_bit_is_found_wherever_it_is(whole: bytes, refuse: Callable[[bytes], str]) -> None:
    start = header_size(whole)
    picked = random.Random(0)
    places = [*range(40), *picked.sample(range(start), 250), *range(start - 12, start + 12)]
    places += [*picked.sample(range(start, len(whole)), 150), *range(len(whole) - 20, len(whole))]
    match = re.search(rb"[0-9a-f]{64}", whole)
    assert match is not None
    places += [*range(match.start() - 14, match.end() + 3)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << picked.randrange(8)
        refuse(bytes(damaged))


def test_every_flipped_bit_of_a_small_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "small"
    write_sealed(path, {"a": torch.arange(3.0), "b": torch.tensor([1])}, "kind", {"version": 1, "text": "é"})
    whole = path.read_bytes()

    def read(content: bytes) -> dict[str, Tensor]:
        path.write_bytes(content)
        with path.open("rb") as stream:
            return read_tensors(stream, read_header(stream))

    assert torch.equal(read(whole)["a"], torch.arange(3.0))
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError):
            read(bytes(damaged))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0], ids=str)
def test_replaced_numbers_are_found(whole: bytes, refuse: Callable[[bytes], str], value: float) -> None:
    start = header_size(whole)
    for place in (start, start + 4000, len(whole) - 400):
        damaged = bytearray(whole)
        damaged[place : place + 16] = struct.pack("<4f", *[value] * 4)
        if damaged != whole:
            assert "must be what was written, got another SHA-256; make the prefix again" in refuse(bytes(damaged))


def test_lost_ends_and_swapped_blocks_are_found(whole: bytes, refuse: Callable[[bytes], str]) -> None:
    start = header_size(whole)
    for kept in (0, 1, 7, 8, 9, start - 1, start, start + 1, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        refuse(whole[:kept])
        if kept > start:
            refuse(whole[:kept].ljust(len(whole), b"\0"))  # what a full disk or a power cut leaves
    for more in (b"\0", b"x" * 100, whole):
        refuse(whole + more)
    refuse(whole[:start] + whole[start + 512 : start + 1024] + whole[start : start + 512] + whole[start + 1024 :])


def test_header_is_bounded_before_it_is_parsed(
    model: Any, whole: bytes, refuse: Callable[[bytes], str], budget: Any, tmp_path: Path
) -> None:
    def file(header: bytes, body: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header + body

    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    texts = {
        "long": b'{"__metadata__":{"vitcop-image-prefix":"' + b"[]" * 40_000_000 + b'"}}',
        "many": b"{" + ",".join(f'"{k}":{empty}' for k in range(1_300_000)).encode() + b"}",
        "deep": b"[" * (MAX_HEADER - 10),
        "number": b'{"a":{"dtype":"F32","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,0]}}',
        "negative": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
        "true": b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        "list": b"[]",
        "dtype": b'{"a":{"dtype":[],"shape":[1],"data_offsets":[0,4]}}',
        "product": b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
        "metadata": b'{"__metadata__":[]}',
    }
    for header in texts.values():
        start = time.process_time()
        assert "must be a whole safetensors file" in refuse(file(header, b"\0\0\0\0"))
        assert time.process_time() - start < 1
    content = json.loads(json.loads(whole[8 : header_size(whole)])["__metadata__"]["vitcop-image-prefix"])
    write_sealed(tmp_path / "many", {f"keys.{k}": torch.zeros(0) for k in range(9999)}, "vitcop-image-prefix", content)
    with pytest.raises(ValueError, match="whose size is that of a prompt of at most 8,192 tokens in 8 layers"):
        ImagePrefix.load(tmp_path / "many", model, budget())


def test_file_larger_than_the_model_could_write_is_not_read(
    model: Any, whole: bytes, budget: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sparse"
    header = json.loads(whole[8 : header_size(whole)])
    content = header["__metadata__"]["vitcop-image-prefix"]
    body = 2**40
    text = json.dumps(
        {
            "__metadata__": {"vitcop-image-prefix": content},
            "input_ids": {"dtype": "I64", "shape": [body // 8], "data_offsets": [0, body]},
        }
    ).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + body)
    with pytest.raises(ValueError, match="whose size is that of a prompt"):
        ImagePrefix.load(path, model, budget())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, str(2**63), "1" * 5000])
def test_numbers_that_are_none_are_refused(
    whole: bytes, refuse: Callable[[bytes], str], tmp_path: Path, text: str
) -> None:
    header = json.loads(whole[8 : header_size(whole)])
    content = json.loads(header["__metadata__"]["vitcop-image-prefix"])
    content["report"]["distance_ratio"] = "HERE"
    header["__metadata__"]["vitcop-image-prefix"] = json.dumps(content).replace('"HERE"', text)
    changed = json.dumps(header).encode()
    assert "version is 3" in refuse(struct.pack("<Q", len(changed)) + changed + whole[header_size(whole) :])


def test_pipe_or_device_is_refused_at_once(model: Any, prefix: ImagePrefix, budget: Any, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match=r"must be a whole safetensors file, got .* must be a (regular )?file"):
            ImagePrefix.load(path, model, budget())
    for path in (pipe, link, tmp_path):
        with pytest.raises(OSError, match=r"must be a (regular )?file"):
            prefix.save(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"], ids=["null", "long", "surrogate"])
def test_name_that_is_none_is_an_error_of_the_kind_that_is_documented(
    model: Any, prefix: ImagePrefix, budget: Any, tmp_path: Path, name: str
) -> None:
    with pytest.raises(OSError, match="name"):
        prefix.save(f"{tmp_path}/{name}")
    with pytest.raises(ValueError, match=r"must be a whole safetensors file, got .*name"):
        ImagePrefix.load(f"{tmp_path}/{name}", model, budget())


def test_save_follows_links_and_leaves_other_files_alone(
    model: Any, prefix: ImagePrefix, budget: Any, tmp_path: Path
) -> None:
    target, link, own = tmp_path / "folder" / "there", tmp_path / "image", tmp_path / "image.unfinished"
    target.parent.mkdir()
    link.symlink_to(target)
    own.write_text("mine")
    before = os.umask(0o027)
    try:
        prefix.save(link)
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert own.read_text() == "mine"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "image", "image.unfinished", "there"]
    ImagePrefix.load(link, model, budget())


def test_several_save_to_one_name(model: Any, prefix: ImagePrefix, budget: Any, tmp_path: Path) -> None:
    path, failed = tmp_path / "image", list[BaseException]()
    prefix.save(path)

    def save() -> None:
        try:
            for _ in range(30):
                prefix.save(path)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ImagePrefix.load(path, model, budget())
    assert not failed
    assert [file.name for file in tmp_path.iterdir()] == ["image"]


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import vitcop_llava
from vitcop_llava import ImagePrefix
from vitcop_llava.tools.demo.scenes import render, sample_scene
from vitcop_llava.tools.model.loading import load

torch.set_num_threads(1)
folder, picked = Path(sys.argv[1]), random.Random(0)
path, demo, method = folder / "image", load(device="cpu"), vitcop_llava.ViTCoP(retained_tokens=48)
given = demo.processor(images=render(sample_scene(33)), text="USER: <image>", return_tensors="pt")
prefix = vitcop_llava.encode_image(demo.model, **given, method=method)
start = time.perf_counter()
prefix.save(path)
wanted, each = path.read_bytes(), time.perf_counter() - start
found = {"whole": 0, "absent": 0, "left": 0, "refused": 0}
for _ in range(int(sys.argv[2])):
    path.unlink(missing_ok=True)
    if not (child := os.fork()):
        while True:
            prefix.save(path)
            path.unlink()
    time.sleep(picked.random() * 4 * each)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found["whole" if path.exists() else "absent"] += 1
    assert not path.exists() or path.read_bytes() == wanted
    for left in set(folder.iterdir()) - {path}:
        found["left"] += 1
        try:
            ImagePrefix.load(left, demo.model, method)
            assert left.read_bytes() == wanted
        except ValueError:
            found["refused"] += 1
prefix.save(path)
found["names"] = [file.name for file in folder.iterdir()]
print(json.dumps(found))
"""


def test_kill_leaves_the_name_absent_or_whole(
    tmp_path: Path, kills: int, record_property: Callable[[str, object], None]
) -> None:
    """What it leaves beside it is refused, or all there, and the next save removes it."""
    command = [sys.executable, "-W", "ignore", "-c", KILLS, str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("names") == ["image"]
    assert found["whole"] + found["absent"] == kills
    record_property("command", "ImagePrefix.save")
    record_property("killed", kills)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("identity", "config.model_type"), "x" * 9000),
        (("identity", "config.text_config.num_hidden_layers"), [1] * 3000),
        (("report", "row", "x" * 9000), 1),
        (("report", "row"), {"x" * 9000: 1}),
        (("report", "note"), [1] * 3000),
        (("groups",), ["x" * 9000]),
        (("version",), "x" * 9000),
    ],
    ids=lambda part: str(part)[:40],
)
def test_refusal_is_short_whatever_is_in_the_file(
    whole: bytes, model: Any, budget: Any, tmp_path: Path, place: tuple[str, ...], value: Any
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(whole)
    with path.open("rb") as stream:
        header = read_header(stream)
        tensors = read_tensors(stream, header)
    content = json.loads(header.metadata["vitcop-image-prefix"])
    del content["sha256"]
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_sealed(path, tensors, "vitcop-image-prefix", content)
    with pytest.raises(ValueError, match="path ") as caught:
        ImagePrefix.load(path, model, budget())
    assert len(str(caught.value)) < 1000 + len(str(path))


def test_half_written_file_is_refused(whole: bytes, refuse: Callable[[bytes], str], tmp_path: Path) -> None:
    """What safetensors' own writer left behind loaded: zeros at the end. Each such beginning is refused."""
    for kept in random.Random(1).sample(range(header_size(whole), len(whole)), 20):
        refuse(whole[:kept].ljust(len(whole), b"\0") if any(whole[kept:]) else whole[: kept - 1])
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    refuse((tmp_path / "foreign").read_bytes())
