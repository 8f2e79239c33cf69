"""What a result was measured on, as plain data, and how fast that machine copies and multiplies."""

from __future__ import annotations

import torch

from vitcop_core.environment import Environment
from vitcop_core.environment import environment_of as environment_with
from vitcop_cuda.bench.stored import Rates
from vitcop_cuda.bench.timing import interleaved


def environment() -> Environment:
    """Return processor, cores, threads, accelerator and package versions."""
    return environment_with(("vitcop-core", "vitcop-cuda"))


def rates(device: str, repeats: int) -> Rates:
    """Return bytes a second of a large copy, read and written, and operations a second of large products."""
    size, side = (2**30, 8192) if device == "cuda" else (2**28, 2048)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=device)
    right, wide, wide_right = left.T.contiguous(), left.double(), left.T.contiguous().double()
    runs = {
        "copy": [lambda: target.copy_(source)],
        "float32": [lambda: left @ right],
        "float64": [lambda: wide @ wide_right],
    }
    found = interleaved(runs, repeats, device, what="rates")
    operations = 2 * side**3
    return {
        "copy_bytes": 2 * size / found["copy"].median,
        "float32_operations": operations / found["float32"].median,
        "float64_operations": operations / found["float64"].median,
    }
