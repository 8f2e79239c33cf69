"""The table of checkpoints is what building and pruning them gives."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "checkpoints.md").read_text().splitlines()


@pytest.fixture(scope="module")
def checkpoints() -> Iterator[ModuleType]:
    """scripts/checkpoints.py, which is a script and no part of a package."""
    spec = importlib.util.spec_from_file_location("checkpoints", ROOT / "scripts" / "checkpoints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["checkpoints"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["checkpoints"]


# One of each way to come out: all methods, some, none.
@pytest.mark.parametrize(
    "name",
    ["llava-hf/llava-interleave-qwen-0.5b-hf", "llava-hf/vip-llava-7b-hf", "xtuner/llava-phi-3-mini-hf"],
)
def test_row_is_what_the_checkpoint_does(checkpoints: ModuleType, name: str) -> None:
    checkpoint = next(each for each in checkpoints.CHECKPOINTS if name in each.names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert checkpoints.row_of(checkpoint) in PAGE


def test_page_has_every_checkpoint(checkpoints: ModuleType) -> None:
    names = [name for checkpoint in checkpoints.CHECKPOINTS for name in checkpoint.names]
    assert len(names) == len(set(names))
    for name in names:
        assert sum(f"`{name}`" in line for line in PAGE) == 1, name
