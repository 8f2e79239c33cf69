"""Compiled kernels for the operators of vitcop-core, on the CPU and on CUDA.

Importing this package registers the kernels under ``torch.ops.vitcop``; from then on every operator that is called on
their device runs on them. There is nothing to call. Where the kernels cannot be loaded, importing is no error: the
operators stay on their pure-torch reference, and :data:`reason` says why.
"""

from dataclasses import dataclass

import vitcop_core.ops  # noqa: F401  (defines the operators that the kernels are for)
from vitcop_cuda._load import load, load_cuda

__version__ = "0.2.0"
__all__ = ["BuildInformation", "build_information", "reason"]


@dataclass(frozen=True)
class BuildInformation:
    """How the kernels were built.

    Attributes:
        torch: The torch that they were compiled against, maybe not the one at hand; None where no kernel is.
        compiler: The C++ compiler; None where no kernel is there.
        cuda: The CUDA of the kernels for GPUs; None where there are none.
        architectures: What those were compiled for, such as ``"9.0"``.
        no_cpu_because: Why there are no kernels at all; empty if they are loaded.
        no_cuda_because: Why there are none for GPUs; empty if they are loaded.
    """

    torch: str | None
    compiler: str | None
    cuda: str | None
    architectures: tuple[str, ...]
    no_cpu_because: str
    no_cuda_because: str


_cpu, _no_cpu = load("_cpu")
reason: str = _no_cpu
"""Why the kernels could not be loaded; empty if they are."""
_cuda, _no_cuda = (None, reason) if _cpu is None else load_cuda(_cpu)


def build_information() -> BuildInformation:
    """Return what was built, and what was not and why."""
    if _cpu is None:
        return BuildInformation(None, None, None, (), reason, reason)
    listed = tuple(part for part in _cuda.ARCHITECTURES.split(";") if part) if _cuda else ()
    version = _cuda.CUDA_VERSION if _cuda else None
    return BuildInformation(_cpu.TORCH_VERSION, _cpu.COMPILER, version, listed, "", _no_cuda)
