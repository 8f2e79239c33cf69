"""What the cross-checks run on, how the host's backends are built, and how close results must be to the reference."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pybind11
import torch
from kernel_inputs import moved
from torch import Tensor
from torch.utils import cpp_extension

from vitcop_core import ops

PACKAGE = Path(__file__).parents[2]
SOURCES = PACKAGE / "csrc"


@dataclass(frozen=True)
class Backend:
    """A namespace of operators and a device.

    Attributes:
        name: In test ids.
        namespace: In ``torch.ops``.
        device: Where the inputs go.
        refuses_values: Whether labels, lengths and counts that do not fit are errors; elsewhere they are cut to fit.
    """

    name: str
    namespace: str
    device: str
    refuses_values: bool = False

    def run(self, op: str, arguments: Sequence[Any]) -> list[Tensor]:
        """Calls an operator, and lists its results on the CPU."""
        function = getattr(getattr(torch.ops, self.namespace), op)
        return listed(function(*(moved(argument, self.device) for argument in arguments)))


BACKENDS = (
    Backend("cpu", "vitcop", "cpu", refuses_values=True),
    Backend("lines", "vitcop_lines", "cpu"),
    Backend("threads", "vitcop_threads", "cpu"),
    Backend("cuda", "vitcop", "cuda"),
)


def listed(result: Any) -> list[Tensor]:
    """The results of an operator on the CPU, one tensor or several."""
    return [part.cpu() for part in ([result] if isinstance(result, Tensor) else result)]


def reference(op: str, arguments: Sequence[Any]) -> list[Tensor]:
    """What the pure-torch reference gives, whatever kernels are registered."""
    return listed(ops.REFERENCES[op](*arguments))


# The largest relative and absolute differences of floating results. Scores are sums in float32, in any order. Norms and
# means are sums in float64 that are rounded once, so only the last bit may differ; densities and distances lose some
# digits to cancellation in the Gram matrix before that.
TOLERANCES: dict[tuple[str, torch.dtype], tuple[float, float]] = {
    ("cls_saliency", torch.float32): (2e-5, 1e-9),
    ("received_attention", torch.float32): (2e-5, 1e-9),
    ("vic", torch.float32): (1e-6, 1e-30),
    ("key_norm", torch.float32): (1.2e-7, 0),
    ("co_prune", torch.float64): (1e-13, 1e-15),
    ("co_prune", torch.float32): (1.2e-7, 1e-15),
    ("co_prune", torch.float16): (9.8e-4, 6e-8),
    ("co_prune", torch.bfloat16): (7.9e-3, 1e-15),
    **{("gather_tokens", dtype): (0, 0) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)},
}


def assert_close(op: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Integers and bools equal, floats within the table; NaN only where the reference has it."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.is_contiguous()
        relative, absolute = TOLERANCES[op, theirs.dtype] if theirs.is_floating_point() else (0, 0)
        torch.testing.assert_close(mine, theirs, rtol=relative, atol=absolute, equal_nan=True)


def assert_identical(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """The same bits, but for those of NaN."""
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]


# As setup.py has it: the sanitized kernels keep to torch's stable interface too.
STABLE = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY", "-fvisibility=hidden"]


def _compile(name: str, sources: Sequence[Path], *, sanitize: bool, is_python_module: bool = False) -> Any:
    folder = PACKAGE / "build" / ("sanitized" if sanitize else "plain") / name
    folder.mkdir(parents=True, exist_ok=True)
    # ninja is installed next to the interpreter, which need not be on the path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "one-at-a-time").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)  # left by a build that was stopped: torch would wait for it for ever
        return cpp_extension.load(
            name,
            [str(source) for source in sources],
            extra_include_paths=[str(SOURCES), str(SOURCES / "include"), pybind11.get_include()],
            extra_cflags=["-std=c++20", "-ffp-contract=off", *STABLE, *(SANITIZE if sanitize else ["-O2"])],
            extra_ldflags=["-fsanitize=address,undefined"] if sanitize else [],
            build_directory=str(folder),
            is_python_module=is_python_module,
        )


@cache
def load_host_operators(*, sanitize: bool = False) -> Any:
    """Builds and loads ``vitcop_lines`` and ``vitcop_threads``; returns the module that says what they launched."""
    sources = [SOURCES / "host" / "register.cpp"]
    return _compile("vitcop_host", sources, sanitize=sanitize, is_python_module=True)


def load_kernels(*, sanitize: bool = False) -> str:
    """Registers the kernels of ``torch.ops.vitcop``; says why there are none, if so."""
    if not sanitize:
        import vitcop_cuda

        return vitcop_cuda.reason
    if "vitcop_cuda" in sys.modules:
        raise RuntimeError("the installed kernels are loaded already: sanitized ones would not be what runs")
    _compile("vitcop_sanitized", sorted((SOURCES / "cpu").glob("*.cpp")), sanitize=True)
    return ""
