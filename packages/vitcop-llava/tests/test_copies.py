"""Copies of a pruned model are not pruned, and hold nothing of the pruner."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitcop_llava
from vitcop_llava import DivPrune, FastV, VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    ViTCoP(retention_ratio=1),
    FastV(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
]


def remains(model: nn.Module) -> list[str]:
    """What of vitcop is found on a model, by module name."""
    found = []
    for name, module in model.named_modules():
        found += [f"{name}.{key}" for key in vars(module) if key in ("forward", "generate", "__getstate__")]
        found += [f"{name}.{key}" for key in vars(module) if key.startswith("get_")]
        for key, hooks in vars(module).items():
            if "hooks" in key and isinstance(hooks, dict):
                found += [f"{name}.{key}" for hook in hooks.values() if "vitcop" in getattr(hook, "__module__", "")]
    return found


def pickled(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.fixture
def fresh(build: Callable[..., Any]) -> Any:
    """A model that has not run: transformers' own hooks cannot be pickled."""
    model = type(build())(build().config).eval()
    model.load_state_dict(build().state_dict())
    model.generation_config = build().generation_config
    return model


@pytest.mark.parametrize("method", METHODS, ids=["vitcop", "all", "fastv", "zip", "divprune"])
@pytest.mark.parametrize("make", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copy_made_inside_is_not_pruned(
    fresh: Any, prompt: Make, pictures: Make, make: Callable[[Any], Any], method: Any
) -> None:
    with vitcop_llava.prune(fresh, method):
        assert remains(fresh)
        twin = make(fresh)
        assert not remains(twin)
    assert not remains(fresh)
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    assert torch.equal(twin(**given).logits, fresh(**given).logits)


def test_copy_is_pruned_with_a_handle_of_its_own(fresh: Any, prompt: Make, pictures: Make) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(fresh, METHODS[0]):
        wanted = fresh(**given).logits
        twin = copy.deepcopy(fresh)
        with vitcop_llava.prune(twin, METHODS[2]) as pruner:
            twin(**given)
            assert torch.equal(fresh(**given).logits, wanted)
        assert pruner.report.method == METHODS[2]
        with vitcop_llava.prune(twin, METHODS[0]):
            assert torch.equal(twin(**given).logits, wanted)
    assert not remains(twin)


@pytest.mark.parametrize(
    "part", ["model", "model.language_model", "model.vision_tower", "model.language_model.layers.3"]
)
def test_copy_of_a_part_holds_nothing(fresh: Any, part: str) -> None:
    with vitcop_llava.prune(fresh, METHODS[0]):
        twin = copy.deepcopy(fresh.get_submodule(part))
        assert not remains(twin)


def test_hooks_of_others_stay_in_copies(fresh: Any, prompt: Make) -> None:
    seen: list[int] = []
    layer = fresh.model.language_model.layers[2]
    layer.register_forward_pre_hook(Counting(seen))
    with vitcop_llava.prune(fresh, METHODS[0]):
        twin = copy.deepcopy(fresh)
    twin(input_ids=prompt(5))
    assert [len(hook.seen) for hook in twin.model.language_model.layers[2]._forward_pre_hooks.values()] == [1]
    assert not seen


class Counting:
    """A hook of somebody else's."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def __call__(self, *args: Any) -> None:
        self.seen.append(1)
