"""How much memory the kernels take, and that they give it back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from kernel_backends import Backend
from kernel_cases import CASES, OPERATORS
from kernel_inputs import Case, moved

# Peak resident memory of a process of its own around the one call: what the kernel takes from the system, whether or
# not through torch's allocator. The warm-up, at few tokens, loads the libraries and starts their threads. The kernel's
# own counter is reset and read, because the one of getrusage would start at the parent's peak.
MEASURE_PEAK = """
import pathlib, re, torch, vitcop_cuda
assert vitcop_cuda.reason == ""
torch.set_num_threads(2)  # each has a workspace of its own
def call(tokens):
    features, positions = torch.randn(1, tokens, 1024), torch.rand(1, tokens, 2)
    return lambda: torch.ops.vitcop.vic(features, positions, tokens // 10 + 1, 100.0, 0.6)
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
call(64)()
run = call(2880)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
results = run()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_vic_takes_less_than_three_matrices_of_floats() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE_PEAK], capture_output=True, text=True, check=True, timeout=300)
    peak = int(run.stdout)
    assert 2880 * 2880 < peak < 3 * 2880 * 2880 * 4, f"{peak / 2880**2 / 4:.2f} n x n floats"


def _held(device: str) -> int:
    """Bytes in use: torch's on a GPU, the process's on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as statistics:  # noqa: PTH123  (read often; no path is needed)
        return int(statistics.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("op", OPERATORS)
def test_repeated_calls_do_not_grow(kernels: Backend, op: str) -> None:
    case = max((case for case in CASES if case.op == op and "2880" not in case.name), key=_size)
    arguments = tuple(moved(argument, kernels.device) for argument in case.arguments(torch.float32))
    function = getattr(torch.ops.vitcop, op)
    for _ in range(5):
        function(*arguments)
    before = _held(kernels.device)
    for _ in range(60):
        function(*arguments)
    # A leak of the workspace alone would be sixty times what a call needs; allocators keep a few pages.
    assert _held(kernels.device) - before < max(4 * _size(case), 8 * 2**20)


def _size(case: Case) -> int:
    return sum(_bytes(argument) for argument in case.arguments(torch.float32))


def _bytes(argument: Any) -> int:
    if isinstance(argument, list):
        return sum(map(_bytes, argument))
    return argument.numel() * argument.element_size() if isinstance(argument, torch.Tensor) else 0
