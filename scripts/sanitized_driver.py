"""Runs every operator on small inputs: what compute-sanitizer watches. ``--device cpu`` tries the script itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "vitcop-cuda" / "tests" / "support"))

from kernel_backends import BACKENDS, assert_close, load_kernels, reference
from kernel_cases import CASES
from kernel_inputs import Case

DTYPES = (torch.float32, torch.bfloat16)


def calls(*, large: bool) -> list[tuple[Case, torch.dtype]]:
    """Return every small case in two dtypes; a sanitizer makes a launch a hundred times slower, not longer ones."""
    chosen = [case for case in CASES if large or not (case.is_large or case.name.startswith("golden"))]
    return [(case, dtype) for case in chosen for dtype in DTYPES if dtype in case.dtypes]


def main() -> None:
    """Run them and compare."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    options.add_argument("--large", action="store_true", help="large cases and golden ones too")
    given = options.parse_args()
    device = given.device
    if reason := load_kernels():
        raise SystemExit(f"the kernels are not there: {reason}")
    (backend,) = (backend for backend in BACKENDS if (backend.namespace, backend.device) == ("vitcop", device))
    chosen = calls(large=given.large)
    for case, dtype in chosen:
        arguments = case.arguments(dtype)
        assert_close(case.op, backend.run(case.op, arguments), reference(case.op, arguments))
    print(f"{len(chosen)} calls agree with the reference on {device}")


if __name__ == "__main__":
    main()
