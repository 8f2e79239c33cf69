"""Safetensors files that know when they are damaged: a digest covers every bit, of header, padding and tensors.

The metadata is one JSON text, in which the SHA-256 of the whole file stands, computed with zeros in its place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vitcop_core.files import write_whole

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
"""What can be written, by the format's names."""

MAX_HEADER = 2**20
"""Bytes of a header: some thousands of tensors, and a configuration."""

_DIGEST = "sha256"
_NONE = "0" * 64
_OF_NAME = {name: dtype for dtype, name in DTYPES.items()}
# The header is JSON that holds JSON, so that quotes of the inner one have backslashes.
_PLACE = re.compile(rb'\\"sha256\\": ?\\"([0-9a-f]{64})\\"')


class DamageError(ValueError):
    """A file that is not what was written; the message goes on after "must"."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies among the bytes after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says of its content, before it has been compared with the digest.

    Attributes:
        metadata: By name, texts.
        tensors: By name.
        raw: Its bytes with those that say how many they are.
        size: Bytes of the tensors.
    """

    metadata: dict[str, str]
    tensors: dict[str, Entry]
    raw: bytes
    size: int


def write_sealed(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], kind: str, content: Any) -> None:
    """Write tensors and JSON with a digest of both, whole or not at all; equal ones make equal files.

    Args:
        path: Replaced if it is there, as `vitcop_core.files.write_whole` does.
        tensors: Of any device and layout.
        kind: What the metadata is called.
        content: A dictionary that JSON can hold.

    Raises:
        OSError: It cannot be written.
    """
    entries: dict[str, Any] = {"__metadata__": {kind: json.dumps({_DIGEST: _NONE} | content, allow_nan=False)}}
    parts, end = list[memoryview](), 0
    # The widest numbers first, so that all are aligned.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        flat = _bytes_of(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8))
        start, end = end, end + len(flat)
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
        parts.append(flat)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise OSError(
            errno.EFBIG, f"its header would have {len(header):,} bytes, and may have {MAX_HEADER:,}", str(path)
        )
    header = len(header).to_bytes(8, "little") + header
    start, stop = _place(header)
    digest = _digest(header[:start], header[stop:], *parts)
    with write_whole(path) as stream:
        stream.write(header[:start] + digest.encode() + header[stop:])
        for part in parts:
            stream.write(part)


def read_header(stream: BinaryIO) -> Header:
    """Read the header of an open file, of bounded length.

    Raises:
        DamageError: It is not one.
    """
    length = stream.read(8)
    count = int.from_bytes(length, "little")
    if len(length) < 8 or not 2 <= count <= MAX_HEADER:
        raise DamageError(f"be a whole safetensors file, with a header of at most {MAX_HEADER:,} bytes, got {count:,}")
    raw = stream.read(count)
    size = os.fstat(stream.fileno()).st_size - 8 - count
    try:
        found = parse_json(raw)
        metadata = {str(name): str(value) for name, value in found.pop("__metadata__", {}).items()}
        tensors = {str(name): _entry(entry) for name, entry in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamageError("be a whole safetensors file, got a header that is not a prefix's") from error
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end or entry.stop - end != math.prod(entry.shape) * entry.dtype.itemsize:
            raise DamageError("be a whole safetensors file with tensors one after the other, got gaps")
        if entry.start % entry.dtype.itemsize:
            raise DamageError("be a whole safetensors file with aligned tensors, got others")
        end = entry.stop
    if end != size:
        raise DamageError(f"be a whole safetensors file, with {end:,} bytes of tensors, got {max(0, size):,}")
    return Header(metadata, tensors, length + raw, size)


def _entry(found: Any) -> Entry:
    (start, stop), shape = found["data_offsets"], found["shape"]
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError(f"header must hold counts for offsets and shapes, got {[start, stop, *shape]}")
    return Entry(_OF_NAME[found["dtype"]], tuple(shape), start, stop)


def read_tensors(stream: BinaryIO, header: Header) -> dict[str, Tensor]:
    """Read what comes after the header, once, and compare all of it with the digest.

    Returns:
        Tensors in memory of their own, which no change of the file alters.

    Raises:
        DamageError: It differs.
    """
    content = torch.empty(header.size, dtype=torch.uint8, device="cpu")
    view = _bytes_of(content)
    start, stop = _place(header.raw)
    if _fill(stream, view) != header.size or stream.read(1):
        raise DamageError("be left alone while it is read, got another size")
    if _digest(header.raw[:start], header.raw[stop:], view) != header.raw[start:stop].decode():
        raise DamageError("be what was written, got another SHA-256")
    return {
        name: content[entry.start : entry.stop].view(entry.dtype).reshape(entry.shape)
        for name, entry in header.tensors.items()
    }


def _bytes_of(flat: Tensor) -> memoryview:
    """Return the memory of a tensor of bytes."""
    array: Any = flat.numpy()
    return memoryview(array)


def _fill(stream: BinaryIO, view: memoryview) -> int:
    filled = 0
    while filled < len(view) and (count := stream.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += count
    return filled


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of numbers that are finite, and no longer than 64 bits.

    Raises:
        ValueError, RecursionError: It is something else.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_short)


def _refuse(name: str) -> Any:
    raise ValueError(f"header must hold numbers, got {name}")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"header must hold finite numbers, got {digits:.40}")
    return value


def _short(digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) >= 2**63:
        raise ValueError(f"header must hold numbers of 64 bits, got {digits:.40}")
    return value


def _place(header: bytes) -> tuple[int, int]:
    """Return where the digest stands."""
    match = _PLACE.search(header)
    if match is None:
        raise DamageError("be what was written, got no digest")
    return match.span(1)


def _digest(before: bytes, *after: bytes | memoryview) -> str:
    found = hashlib.sha256(before)
    for part in (_NONE.encode(), *after):
        found.update(part)
    return found.hexdigest()
