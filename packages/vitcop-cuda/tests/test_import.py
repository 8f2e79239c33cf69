"""What the package says about itself, and what importing it does and does not do."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import subprocess
import sys

import pytest

import vitcop_cuda

PYTHON = [sys.executable, "-W", "error", "-c"]


def run(code: str) -> str:
    return subprocess.run([*PYTHON, code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_version_matches_the_distribution() -> None:
    assert vitcop_cuda.__version__ == importlib.metadata.version("vitcop-cuda")


def test_build_information_names_torch_and_compiler() -> None:
    built = vitcop_cuda.build_information()
    assert vitcop_cuda.reason == built.no_cpu_because == ""
    assert built.torch is not None
    assert re.fullmatch(r"2\.\d+\.\d+", built.torch)  # maybe another: one file fits all
    assert built.compiler
    assert (built.cuda is None) == bool(built.no_cuda_because)
    assert (built.cuda is None) == (built.architectures == ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.cuda = "13.0"  # type: ignore[misc]


def test_kernels_take_the_place_of_the_reference_only_where_imported() -> None:
    has = "torch._C._dispatch_has_kernel_for_dispatch_key('vitcop::vic', 'CPU')"
    assert run(f"import torch, vitcop_core.ops; print({has})") == "False\n"
    assert run(f"import torch, vitcop_cuda; print({has})") == "True\n"


def test_import_builds_nothing_and_loads_no_heavy_module() -> None:
    heavy = "{'transformers', 'torch.utils.cpp_extension', 'numpy.testing', 'triton', 'ninja', 'pybind11'}"
    assert run(f"import sys, vitcop_cuda; print({heavy} & set(sys.modules))") == "set()\n"


def test_missing_module_leaves_the_references_and_says_why() -> None:
    block = "import sys; sys.modules['vitcop_cuda._cpu'] = None; import vitcop_cuda, torch; "
    call = "torch.ops.vitcop.key_norm(torch.ones(1, 1, 1, 4)).item()"
    said = run(f"{block} print({call}); print(vitcop_cuda.reason); print(vitcop_cuda.build_information().torch)")
    value, reason, built = said.splitlines()
    assert (value, built) == ("2.0", "None")
    assert reason
