"""The tower's layers above the selected feature do not run, and nothing else changes for it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP
from vitcop_llava.hooks import active
from vitcop_llava.hooks.tower import TowerHooks

Make = Callable[..., Tensor]
METHODS: list[Any] = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
    FastV(retained_tokens=48),
    PyramidDrop(retained_tokens=64),
    SparseVLM(retained_tokens=64),
]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Which layers of the tower compute: their MLP is called without a hook that vitcop could see."""
    ran: list[int] = []
    replaced = []
    for number, layer in enumerate(model.model.vision_tower.encoder.layers):
        forward = layer.mlp.forward

        def note(*args: Any, number: int = number, forward: Any = forward) -> Any:
            ran.append(number)
            return forward(*args)

        layer.mlp.forward = note
        replaced.append(layer.mlp)
    try:
        yield ran
    finally:
        for mlp in replaced:
            del mlp.forward


@pytest.fixture
def given(prompt: Make, pictures: Make) -> dict[str, Tensor]:
    return {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}


@contextmanager
def run_whole() -> Iterator[None]:
    """Nothing is passed by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TowerHooks, "last_wanted", lambda self, given: None)
        yield


@by_name
def test_unread_layer_does_not_run_and_changes_no_bit(model: Any, given: dict[str, Tensor], method: Any) -> None:
    with run_whole(), vitcop_llava.prune(model, method) as pruner:
        wanted, report = model(**given).logits, str(pruner.report)
    with counted(model) as ran, vitcop_llava.prune(model, method) as pruner:
        found = model(**given).logits
        assert ran == [0, 1, 2]  # of four: the feature is the output of the third
        assert str(pruner.report) == report
    assert torch.equal(found, wanted)


@by_name
def test_keeping_all_runs_the_whole_tower(model: Any, given: dict[str, Tensor], method: Any) -> None:
    whole = type(method)(retention_ratio=1)
    with counted(model) as ran, vitcop_llava.prune(model, whole):
        model(**given)
    assert ran == [0, 1, 2, 3]


def test_generate_passes_layers_by_too(model: Any, given: dict[str, Tensor]) -> None:
    with counted(model) as ran, vitcop_llava.prune(model, METHODS[0]):
        model.generate(**given, max_new_tokens=3, do_sample=False)
    assert ran == [0, 1, 2]


def test_tiles_pass_layers_by_too(next_model: Any, next_inputs: Any) -> None:
    inputs = next_inputs([[2, (131, 77), 3], [(10, 90), 2]])
    method = ViTCoP(retention_ratio=1 / 3, cutoff_distance=3.0)
    with run_whole(), vitcop_llava.prune(next_model, method):
        wanted = next_model(**inputs).logits
    with counted(next_model) as ran, vitcop_llava.prune(next_model, method):
        found = next_model(**inputs).logits
    assert ran == [0, 1, 2]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("choice", "expected"), [(-1, [0, 1, 2, 3]), (3, [0, 1, 2]), ([0, -2], [0, 1, 2]), ([1, -1], [0, 1, 2, 3])], ids=str
)
def test_choice_of_the_call_is_followed(
    build: Callable[..., Any], given: dict[str, Tensor], choice: Any, expected: list[int]
) -> None:
    model = copy.deepcopy(build())
    count = len(choice) if isinstance(choice, list) else 1
    model.model.multi_modal_projector.linear_1 = nn.Linear(32 * count, 32)
    wanted_of = {**given, "vision_feature_layer": choice}
    with run_whole(), vitcop_llava.prune(model, METHODS[2]):
        wanted = model(**wanted_of).logits
    with counted(model) as ran, vitcop_llava.prune(model, METHODS[2]):
        found = model(**wanted_of).logits
    assert ran == expected
    assert torch.equal(found, wanted)


def watchers(model: Any) -> dict[str, Callable[[], Any]]:
    """What a user may put on a model to look at the tower."""
    tower = model.model.vision_tower
    last = tower.encoder.layers[-1]
    return {
        "tower": lambda: tower.register_forward_hook(lambda *_: None),
        "encoder": lambda: tower.encoder.register_forward_pre_hook(lambda *_: None),
        "last-layer": lambda: last.register_forward_hook(lambda *_: None),
        "part": lambda: last.mlp.fc1.register_forward_hook(lambda *_: None),
        "gradients": lambda: last.register_full_backward_hook(lambda *_: None),
        "every-module": lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    }


@pytest.mark.parametrize("name", ["tower", "encoder", "last-layer", "part", "gradients", "every-module"])
def test_layers_run_for_whoever_looks(model: Any, given: dict[str, Tensor], name: str) -> None:
    with counted(model) as ran, vitcop_llava.prune(model, METHODS[0]):
        handle = watchers(model)[name]()
        try:
            model(**given)
        finally:
            handle.remove()
        assert ran == [0, 1, 2, 3]
        ran.clear()
        model(**given)
        assert ran == [0, 1, 2]


def test_swapped_layer_runs(build: Callable[..., Any], given: dict[str, Tensor]) -> None:
    model = copy.deepcopy(build())
    layers = model.model.vision_tower.encoder.layers
    with vitcop_llava.prune(model, METHODS[2]):
        layers[3] = copy.deepcopy(layers[3])
        with counted(model) as ran:
            model(**given)
    assert ran == [0, 1, 2, 3]


def test_calls_by_hand_get_every_layer(model: Any, given: dict[str, Tensor]) -> None:
    tower, images = model.model.vision_tower, given["pixel_values"]
    wanted = tower(images, output_hidden_states=True)
    with vitcop_llava.prune(model, METHODS[0]):
        model(**given)
        found = tower(images, output_hidden_states=True)
    assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
    assert len(found.hidden_states) == len(wanted.hidden_states)


def test_tower_that_fails_leaves_nothing_behind(model: Any, given: dict[str, Tensor]) -> None:
    with vitcop_llava.prune(model, METHODS[0]):
        with pytest.raises(RuntimeError):
            model(**{**given, "pixel_values": given["pixel_values"][:, :2]})
        assert active._top.get() is None
        model(**given)
        assert active._top.get() is None
    assert "forward" not in vars(model.model.vision_tower.encoder.layers[-1])


def test_copy_made_inside_runs_the_whole_tower(build: Callable[..., Any], given: dict[str, Tensor]) -> None:
    model = build()
    with vitcop_llava.prune(model, METHODS[0]):
        twin = copy.deepcopy(model)
    with counted(twin) as ran:
        twin(**given)
    assert ran == [0, 1, 2, 3]
