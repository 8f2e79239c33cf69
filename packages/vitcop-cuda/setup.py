"""Builds the extensions: the CPU kernels always, the CUDA kernels where torch has CUDA and nvcc is found.

Both use torch's stable interface and Python's limited one alone, so that one file fits every torch from 2.11 on and
every Python from 3.11 on.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

SOURCES = Path("csrc")
PYTHON_TAG = "cp311"
USUAL_CUDA_HOME = "/usr/local/cuda"

# Products and sums must round as the reference's do, one by one: no contraction into fused multiply-adds.
CXX_FLAGS = ["-O3", "-Wall", "-fvisibility=hidden", "-ffp-contract=off", "-g0"]
NVCC_FLAGS = ["-O3", "-fmad=false"]

# The oldest torch that the kernels run with; whatever is not in its stable interface does not compile.
MACROS = [("TORCH_TARGET_VERSION", "0x020b000000000000"), ("TORCH_STABLE_ONLY", None)]


def nvcc_top() -> str:
    """Return the folder that an nvcc on the path calls its own, also where it is a script that starts another."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return ""
    said = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    found = re.search(r"^#\$ TOP=(.+)$", said.stderr, re.MULTILINE)
    return found[1].strip() if found else ""


def cuda_home() -> Path | None:
    """Return the first of $CUDA_HOME, the usual folder and nvcc's own that has CUDA's headers and nvcc."""
    for folder in (os.environ.get("CUDA_HOME"), USUAL_CUDA_HOME, nvcc_top()):
        if folder and all((Path(folder) / part).is_file() for part in ("include/cuda_runtime_api.h", "bin/nvcc")):
            return Path(folder).resolve()
    return None


def missing_for_cuda(home: Path | None) -> str:
    """Return why the CUDA kernels cannot be built here; empty if they can."""
    if torch.version.cuda is None:
        return "the torch that it was built with has no CUDA"
    if home is None:
        return "no nvcc was found when it was built; CUDA_HOME says where to look"
    return ""


def architectures() -> str:
    """Return what nvcc compiles for, as torch's build tools read it: the caller's choice, or the GPUs at hand, or a
    pair.
    """
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    default = ";".join(f"{major}.{minor}" for major, minor in sorted(found)) or "8.0;9.0+PTX"
    return os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default)


def extension(half: str, **macros: str) -> cpp_extension.CppExtension:
    """Return ``vitcop_cuda._cpu`` or ``vitcop_cuda._cuda``: two files, so that a torch without CUDA can load the
    first.
    """
    kind = cpp_extension.CUDAExtension if half == "cuda" else cpp_extension.CppExtension
    sources = [*SOURCES.glob(f"{half}/*.cpp"), *SOURCES.glob(f"{half}/*.cu"), SOURCES / "python" / f"{half}.cpp"]
    return kind(
        f"vitcop_cuda._{half}",
        sorted(map(str, sources)),
        include_dirs=[str(SOURCES.resolve()), str(SOURCES.resolve() / "include")],
        define_macros=[*MACROS, *((name, f'"{text}"') for name, text in macros.items())],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
    )


def extensions() -> list[cpp_extension.CppExtension]:
    """Return the halves that can be built here."""
    home = cuda_home()
    reason = missing_for_cuda(home)
    halves = [extension("cpu", VITCOP_NO_CUDA_BECAUSE=reason)]
    if not reason:
        cpp_extension.CUDA_HOME = str(home)
        versions = {"VITCOP_CUDA_VERSION": torch.version.cuda, "VITCOP_ARCHITECTURES": architectures()}
        halves.append(extension("cuda", **versions))
    return halves


# ninja is installed next to the interpreter, which need not be on the path; without it files are compiled one by one.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": PYTHON_TAG}},
)
