"""Importing the package patches, compiles and downloads nothing."""

import subprocess
import sys

import pytest

import vitcop_llava

PROBE = r"""
import copy, sys
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration as Llava
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.generation import GenerationMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
watched = [Llava, Cache, DynamicCache, DynamicLayer, GenerationMixin, nn.Module]
before = [dict(vars(kind)) for kind in watched]
attention = set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)
modules = set(sys.modules)
import vitcop_llava
vitcop_llava.prune, vitcop_llava.Report, vitcop_llava.ViTCoP
print([dict(vars(kind)) for kind in watched] == before)
print((set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)) == attention)
heavy = {"torchvision", "matplotlib", "PIL", "typer", "rich", "vitcop_video", "torch.utils.cpp_extension"}
heavy |= {"vitcop_llava.tools"}
print(sorted(heavy & set(sys.modules) - modules))
print(torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
"""


def test_import_is_lean() -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", PROBE], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["True", "True", "[]", "OrderedDict() OrderedDict()", ""]


def test_public_names_exist_once() -> None:
    assert all(hasattr(vitcop_llava, name) for name in vitcop_llava.__all__)
    assert len(set(vitcop_llava.__all__)) == len(vitcop_llava.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="frobnicate"):
        vitcop_llava.frobnicate  # noqa: B018
