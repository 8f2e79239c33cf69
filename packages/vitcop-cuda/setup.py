"""Builds the extension: the CPU kernels always, the CUDA kernels where torch has CUDA and nvcc is found."""

import os
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils import cpp_extension

SOURCES = Path("csrc")

# Products and sums must round as the reference's do, one by one: no contraction into fused multiply-adds.
CXX_FLAGS = ["-O3", "-Wall", "-ffp-contract=off", "-g0"]
NVCC_FLAGS = ["-O3", "-fmad=false"]


def missing_for_cuda() -> str:
    """Why the CUDA kernels cannot be built here; empty if they can."""
    if torch.version.cuda is None:
        return "the torch that it was built with has no CUDA"
    if cpp_extension.CUDA_HOME is None or not (Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc").is_file():
        return "no nvcc was found when it was built; CUDA_HOME says where to look"
    return ""


def architectures() -> str:
    """What nvcc compiles for, as torch's build tools read it: the caller's choice, or the GPUs at hand, or a pair."""
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    default = ";".join(f"{major}.{minor}" for major, minor in sorted(found)) or "8.0;9.0+PTX"
    return os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default)


def extension() -> cpp_extension.CppExtension:
    """The one module, ``vitcop_cuda._kernels``."""
    reason = missing_for_cuda()
    sources = [*SOURCES.glob("cpu/*.cpp"), SOURCES / "module.cpp"]
    macros = [("VITCOP_NO_CUDA_BECAUSE", f'"{reason}"')]
    flags: list[str] | dict[str, list[str]] = CXX_FLAGS
    kind = cpp_extension.CppExtension
    if not reason:
        sources += [*SOURCES.glob("cuda/*.cu"), SOURCES / "cuda" / "register.cpp"]
        macros.append(("VITCOP_CUDA_VERSION", f'"{torch.version.cuda}"'))
        macros.append(("VITCOP_ARCHITECTURES", f'"{architectures()}"'))
        flags = {"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS}
        kind = cpp_extension.CUDAExtension
    return kind(
        "vitcop_cuda._kernels",
        sorted(map(str, sources)),
        include_dirs=[str(SOURCES.resolve()), str(SOURCES.resolve() / "include"), pybind11.get_include()],
        define_macros=macros,
        extra_compile_args=flags,
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
