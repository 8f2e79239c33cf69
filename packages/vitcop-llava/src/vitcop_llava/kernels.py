"""Compiled kernels: taken where vitcop-cuda is installed, never needed."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec


@cache
def load_kernels() -> None:
    """Register vitcop-cuda's kernels, once; the dispatcher then picks them by device.

    Warns where the package is there and its kernels are not: the results are the same, only slower, and nothing else
    would tell.
    """
    if find_spec("vitcop_cuda") is None:
        return
    reason = import_module("vitcop_cuda").reason
    if reason:
        warnings.warn(f"vitcop-cuda: {reason}; the reference kernels run", RuntimeWarning, stacklevel=3)
