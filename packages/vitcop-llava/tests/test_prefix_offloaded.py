"""Prefixes of models whose weights accelerate keeps elsewhere: in memory, on disk, or behind hooks alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn

import vitcop_llava
from vitcop_llava import ImagePrefix
from vitcop_llava.weights.fingerprint import fingerprint
from vitcop_llava.weights.offloading import execution_device

Make = Callable[..., Tensor]
CPU = torch.device("cpu")
QUESTIONS = [[5, 6, 7, 8], [9]]


def to_memory(model: Any, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=CPU)


def to_disk(model: Any, folder: Path) -> Any:
    return accelerate.disk_offload(model, str(folder), execution_device=CPU)


def in_part(model: Any, folder: Path) -> Any:
    """The first layers on disk, the rest in its place."""
    names = [name for name, _ in model.named_children() if name != "model"]
    names += [f"model.{name}" for name, _ in model.model.named_children() if name != "language_model"]
    language = model.model.language_model
    names += [f"model.language_model.{name}" for name, _ in language.named_children() if name != "layers"]
    places: dict[str, Any] = dict.fromkeys(names, "cpu")
    for number in range(len(language.layers)):
        places[f"model.language_model.layers.{number}"] = "disk" if number < 3 else "cpu"
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


def behind_hooks(model: Any, folder: Path) -> Any:
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


PLACES = {"memory": to_memory, "disk": to_disk, "in-part": in_part, "hooks": behind_hooks}


@pytest.fixture
def offload(tmp_path: Path) -> Callable[[str, Any], Any]:
    """A copy of a model with its weights in another place."""

    def make(place: str, model: Any) -> Any:
        folder = tmp_path / f"offloaded-{len([*tmp_path.iterdir()])}"
        folder.mkdir()
        return PLACES[place](copy.deepcopy(model), folder)

    return make


@pytest.fixture
def encode(prompt: Make, pictures: Make, budget: Any) -> Callable[[Any], ImagePrefix]:
    return lambda model: vitcop_llava.encode_image(model, prompt(3, "image", 2), pictures(), method=budget())


def logits(model: Any, prefix: ImagePrefix) -> Tensor:
    """What follows the questions, by calls of the model."""
    given = prefix.inputs(QUESTIONS)
    given["input_ids"] = given["input_ids"][:, prefix.input_ids.shape[1] :]
    found: Tensor = model(**given).logits
    return found


@pytest.mark.parametrize("place", PLACES)
def test_prefix_of_an_offloaded_model_is_stored_and_answers(
    model: Any, offload: Any, encode: Any, budget: Any, tmp_path: Path, place: str
) -> None:
    with vitcop_llava.prune(model, budget()):
        wanted = logits(model, encode(model))
    own = offload(place, model)
    with vitcop_llava.prune(own, budget()):
        prefix = encode(own)
        prefix.save(tmp_path / "image")
        loaded = ImagePrefix.load(tmp_path / "image", own)
        for which in (prefix, loaded):
            torch.testing.assert_close(logits(own, which), wanted, atol=1e-5, rtol=0)
    cache: Any = loaded.cache()
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert {tensor.device for tensor in [*held, loaded.input_ids]} == {CPU}


@pytest.mark.parametrize("place", PLACES)
def test_place_of_the_weights_is_no_part_of_the_model(
    model: Any, build: Callable[..., Any], offload: Any, encode: Any, budget: Any, tmp_path: Path, place: str
) -> None:
    encode(model).save(tmp_path / "image")
    ImagePrefix.load(tmp_path / "image", offload(place, model), budget())
    with pytest.raises(ValueError, match="got weights of another checkpoint"):
        ImagePrefix.load(tmp_path / "image", offload(place, build(seed=1)), budget())


def test_weights_on_disk_are_read_once(model: Any, offload: Any, tmp_path: Path) -> None:
    own = offload("disk", model)
    found = fingerprint(own.model)
    for file in tmp_path.rglob("*.dat"):
        file.unlink()
    assert fingerprint(own.model) == found


def test_weights_on_disk_of_a_wider_dtype_are_those_that_compute(model: Any, offload: Any) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    own = offload("disk", model)
    for name, parameter in half.model.named_parameters():
        path, _, leaf = name.rpartition(".")
        part = own.model.get_submodule(path)
        setattr(part, leaf, nn.Parameter(getattr(part, leaf).to(torch.bfloat16), parameter.requires_grad))
    assert fingerprint(own.model) == fingerprint(half.model)


def test_execution_device_is_where_a_module_computes() -> None:
    with torch.device("meta"):
        block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert execution_device(block) == CPU
    block[1] = nn.Linear(2, 2)
    accelerate.hooks.add_hook_to_module(block[1], accelerate.hooks.CpuOffload("cuda:1"))
    assert execution_device(block) == torch.device("cuda", 1)
    block[0] = nn.Linear(2, 2)
    for hook in (accelerate.hooks.ModelHook(), accelerate.hooks.CpuOffload(CPU)):
        accelerate.hooks.add_hook_to_module(block[0], hook, append=True)
    assert execution_device(block) == CPU
    assert execution_device(nn.Sequential()) == CPU
    assert execution_device(nn.Linear(2, 2)) == CPU
