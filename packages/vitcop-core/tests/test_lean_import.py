"""Importing the package brings in torch and nothing that compiles, patches or downloads."""

import doctest
import subprocess
import sys
from pathlib import Path

import vitcop_core

PROBE = """
import sys
import torch
before = set(sys.modules)
import vitcop_core
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
print(*sorted({"transformers", "torchvision", "triton", "numpy.f2py"} & set(sys.modules)))
print("torch.utils.cpp_extension" in sys.modules)
"""


def test_import_is_lean() -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    packages, unwanted, builds = result.stdout.splitlines()
    assert set(packages.split()) <= {"vitcop_core", "torch"}
    assert unwanted == ""
    assert builds == "False"


def test_public_names_exist_once() -> None:
    assert all(hasattr(vitcop_core, name) for name in vitcop_core.__all__)
    assert len(set(vitcop_core.__all__)) == len(vitcop_core.__all__)


def test_readme_examples_hold() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    assert doctest.testfile(str(readme), module_relative=False).failed == 0
