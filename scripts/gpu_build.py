"""Build the kernels into their folder, unless ones that load are there already; ``--cuda`` asks for those of a GPU."""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "packages" / "vitcop-cuda"
LOADS = """
import sys, vitcop_cuda
told = vitcop_cuda.build_information()
print(told)
sys.exit(bool(told.no_cuda_because if sys.argv[1:] else vitcop_cuda.reason))
"""


def loads(wants: list[str]) -> bool:
    """Return whether the kernels load, in a process of its own: what failed to load once is not tried again."""
    return subprocess.run([sys.executable, "-c", LOADS, *wants], check=False).returncode == 0


def main() -> None:
    """Build where nothing loads, and exit with 1 if nothing loads then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", action="store_true")
    wants = ["cuda"] if parser.parse_args().cuda else []
    if loads(wants):
        return
    setuptools = importlib.metadata.version("setuptools")
    if int(setuptools.partition(".")[0]) < 77:
        sys.exit(f"setuptools must be 77 or newer to build the kernels, got {setuptools}; take a built module along")
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=KERNELS, check=True)
    sys.exit(0 if loads(wants) else 1)


if __name__ == "__main__":
    main()
