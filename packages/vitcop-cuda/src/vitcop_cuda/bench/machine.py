"""What a result was measured on, as plain data, and how fast that machine copies and multiplies."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from vitcop_cuda.bench.timing import interleaved


def environment() -> dict[str, object]:
    """Processor, cores, threads, accelerator and package versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in ("torch", "vitcop-core", "vitcop-cuda")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def rates(device: str, repeats: int) -> dict[str, float]:
    """Bytes a second of a large copy, read and written, and operations a second of large products."""
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
