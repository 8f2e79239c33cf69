"""Checks that the compiled modules of vitcop-cuda fit every torch: by their symbols, and by running them.

``abi_check.py symbols WHEEL``: whatever its modules leave undefined is a C function that torch keeps stable and that
the torch of this interpreter has, one of Python's limited API, or of a system library. ``abi_check.py run``: the
installed kernels agree with the references in every small case, on the CPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from torch_without_nvidia import torch_libraries

ROOT = Path(__file__).parents[1]

# Torch's stable functions are C; Python's are those that a module of constants takes.
STABLE = re.compile(r"(aoti_)?torch_\w+")
PYTHON = {"PyModule_Create2", "PyModule_AddStringConstant", "_Py_Dealloc"}
SYSTEM = re.compile(r"\S+@(GLIBC|GLIBCXX|CXXABI|GCC|libcudart\.so)\S*|_Unwind_\w+|__gmon_start__|_ITM_\w+")
STANDARD = re.compile(r"(typeinfo|vtable|VTT|guard variable)?( for )?(std::|operator (new|delete)|__cxxabiv1::).*")


def symbols(library: Path, which: str) -> list[tuple[str, str]]:
    """Return the kind and name of the dynamic symbols that are ``undefined`` or ``defined``."""
    command = ["nm", "-D", f"--{which}-only", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(line.split()[-2], line.split()[-1]) for line in lines]


def foreign(library: Path) -> tuple[list[str], list[str]]:
    """Return the stable functions of torch that a module cannot do without, and the undefined symbols that no rule
    allows.
    """
    stable: list[str] = []
    others: list[str] = []
    for kind, name in symbols(library, "undefined"):
        readable = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
        if STABLE.fullmatch(name):
            stable += [name] * (kind == "U")  # a weak one may be missing
        elif not (name in PYTHON or SYSTEM.fullmatch(name) or STANDARD.fullmatch(readable)):
            others.append(readable)
    return stable, others


def check_symbols(wheel: Path) -> None:
    """Raise ``SystemExit`` unless every module of the wheel keeps to the stable interface."""
    if "-cp311-abi3-" not in wheel.name:
        raise SystemExit(f"{wheel.name} is not for every Python from 3.11 on")
    torch_has = {name for library in torch_libraries().glob("lib*.so") for _, name in symbols(library, "defined")}
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        modules = sorted(Path(folder).glob("vitcop_cuda/*.so"))
        if not modules:
            raise SystemExit(f"{wheel.name} has no compiled module")
        for module in modules:
            stable, others = foreign(module)
            if others:
                raise SystemExit(f"{module.name} needs what is not stable: {', '.join(others)}")
            if missing := set(stable) - torch_has:
                raise SystemExit(f"torch has no {', '.join(sorted(missing))}, which {module.name} needs")
            print(f"{module.name}: {len(stable)} functions of torch, all of its stable interface")


def run_kernels() -> None:
    """Raise unless the kernels that are installed give what the references give."""
    sys.path.insert(0, str(ROOT / "packages" / "vitcop-cuda" / "tests" / "support"))
    import torch
    from kernel_backends import BACKENDS, assert_close, load_kernels, reference
    from kernel_cases import CASES

    if reason := load_kernels():
        raise SystemExit(f"torch {torch.__version__}: {reason}")
    calls = [(case, dtype) for case in CASES if not case.is_large for dtype in case.dtypes]
    for case, dtype in calls:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"vitcop::{case.op}", "CPU"):
            raise SystemExit(f"torch {torch.__version__}: {case.op} has no kernel")
        arguments = case.arguments(dtype)
        assert_close(case.op, BACKENDS[0].run(case.op, arguments), reference(case.op, arguments))
    import vitcop_cuda

    print(f"torch {torch.__version__}: {len(calls)} calls agree; {vitcop_cuda.build_information()}")


def main() -> None:
    """Run one of the two."""
    options = argparse.ArgumentParser(description=__doc__)
    checks = options.add_subparsers(dest="check", required=True)
    checks.add_parser("symbols").add_argument("wheel", type=Path)
    checks.add_parser("run")
    given = options.parse_args()
    if given.check == "symbols":
        check_symbols(given.wheel)
    else:
        run_kernels()


if __name__ == "__main__":
    main()
