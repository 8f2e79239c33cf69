"""Memory: what there is, and what a call of vic takes beyond its inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

import vitcop_cuda  # noqa: F401  (registers the kernels)
from vitcop_cuda.bench.formulations import vic_inputs

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def free_bytes(device: str) -> int:
    """Return the memory that is free on the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def peak_of_vic(tokens: int, device: str) -> int:
    """Return the bytes that ``vic`` takes at its peak beyond its inputs, results included.

    On a CPU measured in a process of its own by the resident memory of the whole process, which also sees what does not
    come from torch's allocator; the kernel's counter of the peak is reset just before the call.
    """
    if device == "cuda":
        given = vic_inputs(tokens, 1, device, 0)
        torch.ops.vitcop.vic(*given)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.ops.vitcop.vic(*given)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    module = "vitcop_cuda.bench.memory"
    done = subprocess.run([sys.executable, "-m", module, str(tokens)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    if found is None:
        raise RuntimeError(f"{_STATUS} has no {name}")
    return int(found[1]) * 1024


def _measure(tokens: int) -> int:
    torch.ops.vitcop.vic(*vic_inputs(64, 1, "cpu", 0))  # loads the libraries and starts their threads
    given = vic_inputs(tokens, 1, "cpu", 0)
    _RESET.write_text("5")  # the peak so far becomes what is resident now
    before = _status("VmRSS")
    results = torch.ops.vitcop.vic(*given)
    peak = _status("VmHWM")
    del results
    return peak - before


if __name__ == "__main__":
    print(_measure(int(sys.argv[1])))
