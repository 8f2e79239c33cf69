"""Models that accelerate spreads or offloads, whose hooks rebuild every output, generate as the bare model does."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP

Make = Callable[..., Tensor]
# Some versions of transformers look for an offloaded model where its weights are, which is nowhere.
pytestmark = pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
METHODS = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    FastV(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
    EarlyViTCoP(retained_tokens=24, ranking="layer0"),
]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "twice": {"num_return_sequences": 2},
}


def dispatched(model: Any, folder: Path) -> Any:
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


def on_the_host(model: Any, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: Any, folder: Path) -> Any:
    return accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def with_hook(model: Any, folder: Path) -> Any:
    model, _ = accelerate.cpu_offload_with_hook(model, execution_device="cpu")
    return model


WAYS = [dispatched, on_the_host, on_disk, with_hook]


@by_name
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("mode", MODES)
def test_offloaded_model_generates_as_the_bare_one(
    build: Any, prompt: Make, pictures: Make, tmp_path: Path, method: Any, way: Callable[..., Any], mode: str
) -> None:
    model, ids = build(), torch.cat([prompt(3, "image", 2, "image", 8), prompt(3, "image", 2, "image", 8, seed=1)])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(4)}
    given |= MODES[mode] | {"max_new_tokens": 3, "do_sample": mode == "twice", "top_k": 1}
    with vitcop_llava.prune(model, method):
        wanted = model.generate(**given)
    other = way(copy.deepcopy(model), tmp_path)
    with vitcop_llava.prune(other, method) as pruner:
        assert torch.equal(other.generate(**given), wanted)
        assert pruner.report.pruned


@pytest.mark.parametrize("beams", [1, 2])
def test_dispatched_tiles(next_model: Any, next_inputs: Any, tmp_path: Path, beams: int) -> None:
    given = next_inputs([[2, (131, 77), 3], [4]])
    with vitcop_llava.prune(next_model, METHODS[0]):
        wanted = next_model.generate(**given, max_new_tokens=3, num_beams=beams)
    other = dispatched(copy.deepcopy(next_model), tmp_path)
    with vitcop_llava.prune(other, METHODS[0]):
        assert torch.equal(other.generate(**given, max_new_tokens=3, num_beams=beams), wanted)


SCORED = [FastV(retained_tokens=60), PyramidDrop(retained_tokens=60), SparseVLM(retained_tokens=60), METHODS[0]]


@pytest.mark.parametrize("method", SCORED, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("whole", ["LlamaAttention", "LlamaDecoderLayer", "CLIPAttention"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_weights_that_come_by_the_layer(
    build: Any, prompt: Make, pictures: Make, method: Any, whole: str, use_cache: bool
) -> None:
    model, given = build(), {"input_ids": prompt(3, "image", 8), "pixel_values": pictures(), "use_cache": use_cache}
    with vitcop_llava.prune(model, method):
        wanted = model(**given).logits
    other = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"), preload_module_classes=[whole])
    with vitcop_llava.prune(other, method):
        assert torch.equal(other(**given).logits, wanted)
        assert torch.equal(other(**given).logits, wanted)


@by_name
@pytest.mark.parametrize("run", ["forward", "base", "generate"])
def test_hooks_removed_inside_the_block_are_refused(
    build: Any, prompt: Make, pictures: Make, method: Any, run: str
) -> None:
    """accelerate puts back the forwards that it found, and the pruner's with them."""
    model = accelerate.dispatch_model(copy.deepcopy(build()), {"": "cpu"}, force_hooks=True)
    ids = prompt(3, "image", 8)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, method):
        accelerate.hooks.remove_hook_from_module(model, recurse=True)
        call = {"forward": model, "base": model.model, "generate": partial(model.generate, max_new_tokens=2)}[run]
        with pytest.raises(ValueError, match="model must keep the forward of its base module"):
            call(**given)
    with vitcop_llava.prune(model, method) as pruner:
        model(**given)
        assert pruner.report.pruned


def test_hooks_added_inside_the_block(build: Any, prompt: Make, pictures: Make) -> None:
    model = copy.deepcopy(build())
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    plain = model(**given).logits
    with vitcop_llava.prune(model, METHODS[0]):
        wanted = model(**given).logits
        accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
        assert torch.equal(model(**given).logits, wanted)
    assert torch.equal(model(**given).logits, plain)
    with vitcop_llava.prune(model, METHODS[0]):
        assert torch.equal(model(**given).logits, wanted)


@by_name
def test_outputs_that_really_move_keep_their_images(
    model: Any, prompt: Make, pictures: Make, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two devices: every feature arrives as a tensor of its own."""
    ids = torch.cat([prompt(3, "image", 8), prompt(3, "image", 8, seed=2)])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(2)}
    given |= {"max_new_tokens": 3, "num_beams": 3, "do_sample": False}

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, dict):
            return type(value)({key: moved(each) for key, each in value.items()})
        return [moved(each) for each in value] if isinstance(value, list) else value

    def move(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"mm_encoder_outputs": moved(kwargs.get("mm_encoder_outputs"))}

    with vitcop_llava.prune(model, method):
        wanted = model.generate(**given)
        handle = model.register_forward_pre_hook(move, with_kwargs=True)
        try:
            assert torch.equal(model.generate(**given), wanted)
        finally:
            handle.remove()
