"""Loading the compiled modules, and the reason where that does not work."""

import importlib
from typing import Any

import torch


def load(name: str) -> tuple[Any | None, str]:
    """Return the compiled module of that name and an empty reason, or None and why there is none."""
    full_name = f"vitcop_cuda.{name}"
    try:
        return importlib.import_module(full_name), ""
    except ModuleNotFoundError as error:
        if error.name != full_name:
            raise
        return None, "vitcop-cuda was installed without its compiled module"
    except ImportError as error:
        # A library that is missing, or a torch older than those that the kernels are for.
        return None, f"the compiled module does not load: {error}"


def load_cuda(cpu: Any) -> tuple[Any | None, str]:
    """Do what :func:`load` does for the CUDA kernels, which only a torch with CUDA can load.

    Args:
        cpu: The module of the CPU kernels, which knows whether those for CUDA were built.
    """
    if cpu.NO_CUDA_BECAUSE:
        return None, cpu.NO_CUDA_BECAUSE
    if torch.version.cuda is None:
        return None, "the torch that is installed has no CUDA"
    return load("_cuda")
