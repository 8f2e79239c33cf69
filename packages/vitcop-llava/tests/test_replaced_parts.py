"""Adapters, merges and parts that are swapped while a model is pruned: right, or refused by name."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from adapters import by_transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    ViTCoP(retained_tokens=24, cutoff_distance=3.0, saliency="attention"),
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
]
by_name = pytest.mark.parametrize(
    "method", METHODS, ids=["vitcop", "attention", "fastv", "pyramid", "sparse", "zip", "divprune"]
)
# PEFT reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning", "ignore:.*base_model_name_or_path:UserWarning"
)
ADAPTERS: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "k_proj"], "init_lora_weights": False}


@pytest.fixture
def own(build: Callable[..., Any]) -> Any:
    """A model that a test may change."""
    return copy.deepcopy(build())


@pytest.fixture
def given(prompt: Make, pictures: Make) -> dict[str, Tensor]:
    return {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}


@by_transformers
@by_name
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_adapter_added_inside_is_seen(own: Any, given: dict[str, Tensor], method: Any, use_cache: bool) -> None:
    with vitcop_llava.prune(own, method):
        own(**given)
        own.add_adapter(LoraConfig(**ADAPTERS))
        own.eval()
        inside = own(**given, use_cache=use_cache).logits
    with vitcop_llava.prune(own, method):
        torch.testing.assert_close(inside, own(**given, use_cache=use_cache).logits, rtol=0, atol=0)


@by_name
def test_adapters_wrapped_and_merged_inside(own: Any, given: dict[str, Tensor], method: Any) -> None:
    with vitcop_llava.prune(own, method):
        wrapped = get_peft_model(own, LoraConfig(**ADAPTERS)).eval()
        inside = wrapped(**given).logits
        merged = wrapped.merge_and_unload()
        torch.testing.assert_close(merged(**given).logits, inside, rtol=1e-4, atol=1e-4)
    with vitcop_llava.prune(own, method):
        torch.testing.assert_close(own(**given).logits, inside, rtol=1e-4, atol=1e-4)


def test_wrapped_model_is_opened(own: Any, given: dict[str, Tensor]) -> None:
    wrapped: Any = get_peft_model(own, LoraConfig(**ADAPTERS)).eval()
    mask = {"attention_mask": torch.ones_like(given["input_ids"])}
    with vitcop_llava.prune(own, METHODS[0]):
        wanted = wrapped(**given).logits, wrapped.generate(**given, **mask, max_new_tokens=3)
    with vitcop_llava.prune(wrapped, METHODS[0]) as pruner:
        assert torch.equal(wrapped(**given).logits, wanted[0])
        assert torch.equal(wrapped.generate(**given, **mask, max_new_tokens=3), wanted[1])
        assert pruner.report.pruned


def test_data_parallel_is_refused_with_the_way_out(own: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be the model that runs, got a DataParallel.* prune model.module"):
        vitcop_llava.prune(nn.DataParallel(own), METHODS[0])


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "language_model", "layer"])
@pytest.mark.parametrize("run", ["forward", "generate"])
def test_swapped_part_is_refused_by_name(own: Any, given: dict[str, Tensor], part: str, run: str) -> None:
    other = copy.deepcopy(own).model
    names = {"vision_tower": "vision tower", "multi_modal_projector": "projector", "language_model": "language model"}
    with vitcop_llava.prune(own, METHODS[0]):
        if part == "layer":
            own.model.language_model.layers[5] = other.language_model.layers[5]
        else:
            setattr(own.model, part, getattr(other, part))
        with pytest.raises(ValueError, match=f"model must keep its {names.get(part, 'decoder layers')} while"):
            (own if run == "forward" else partial(own.generate, max_new_tokens=2))(**given)
    with vitcop_llava.prune(own, METHODS[0]) as pruner:
        own(**given)
        assert pruner.report.pruned


def test_swapped_vision_layer_is_refused_by_name(own: Any, given: dict[str, Tensor]) -> None:
    layers = own.model.vision_tower.encoder.layers
    with vitcop_llava.prune(own, METHODS[0]):
        layers[2] = copy.deepcopy(own).model.vision_tower.encoder.layers[2]
        with pytest.raises(ValueError, match="model must run the layer of its vision tower that Stage I reads"):
            own(**given)


def test_call_that_skips_a_layer_is_refused(own: Any, given: dict[str, Tensor]) -> None:
    with vitcop_llava.prune(own, METHODS[0]):
        own.model.language_model.config.num_hidden_layers = 6  # what the model's forward counts its layers by
        with pytest.raises(ValueError, match=r"model must run each of its 8 decoder layers once .* got 6 runs"):
            own(**given)
