"""Gradients flow through what was kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
    EarlyViTCoP(retained_tokens=24, ranking="layer0"),
]


def gradients(model: Any, ids: Tensor, images: Tensor, method: ViTCoP, **given: Any) -> dict[str, Tensor]:
    model.zero_grad()
    with vitcop_llava.prune(model, method):
        model(input_ids=ids, pixel_values=images, labels=ids.masked_fill(ids == 99, -100), **given).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_reach_every_part(
    build: Any, prompt: Make, pictures: Make, budget: Any, attention: str, use_cache: bool
) -> None:
    model = build(attention=attention)
    found = gradients(model, prompt(3, "image", 8), pictures(), budget(), use_cache=use_cache)
    for part in ("lm_head", "layers.0.self_attn.k_proj", "layers.7.mlp", "linear_1", "patch_embedding"):
        mine = [value for name, value in found.items() if part in name]
        assert mine
        assert all(value.isfinite().all() and value.abs().sum() > 0 for value in mine)


def test_gradients_agree_with_differences(build: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    """Along one weight of the last layer: nothing there moves a cut."""
    model, ids = build("llama"), prompt(3, "image", 8)
    weight = model.model.language_model.layers[7].mlp.down_proj.weight
    slope = gradients(model, ids, pictures(), budget())["model.language_model.layers.7.mlp.down_proj.weight"][0, 0]
    losses, step = [], 0.25
    with vitcop_llava.prune(model, budget()), torch.no_grad():
        for sign in (1, -1):
            weight[0, 0] += sign * step
            losses.append(model(input_ids=ids, pixel_values=pictures(), labels=ids.masked_fill(ids == 99, -100)).loss)
            weight[0, 0] -= sign * step
    torch.testing.assert_close(slope, (losses[0] - losses[1]) / (2 * step), rtol=2e-2, atol=1e-5)


def test_keep_all_gradients_equal_unpatched(build: Any, prompt: Make, pictures: Make) -> None:
    model, ids = build(), prompt(3, "image", 8)
    found = gradients(model, ids, pictures(), ViTCoP(retention_ratio=1))
    model(input_ids=ids, pixel_values=pictures(), labels=ids.masked_fill(ids == 99, -100)).loss.backward()
    assert all(torch.equal(found[name], p.grad) for name, p in model.named_parameters() if p.grad is not None)
    model.zero_grad()


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_checkpoints_do_not_change_gradients(
    build: Any, prompt: Make, pictures: Make, method: Any, reentrant: bool
) -> None:
    if "__call__" in vars(GradientCheckpointingLayer):
        pytest.skip("this version of transformers runs hooks again when it computes activations again")
    model, ids = build(seed=7), torch.cat([prompt(3, "image", 8), prompt(3, "image", 8, seed=1)])
    model.train()
    name = "gradient" if not hasattr(model, "activation_checkpointing_enable") else "activation"  # as versions have it
    wanted = gradients(model, ids, pictures(2), method, use_cache=False)
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": reentrant})
    try:
        found = gradients(model, ids, pictures(2), method)
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
        model.eval()
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-6)


def test_checkpoints_forget_activations(build: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    """What a checkpointed layer saves for the backward pass is its input, at the length that it runs on."""
    model, given = build(seed=7), {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    if "__call__" in vars(GradientCheckpointingLayer):
        pytest.skip("this version of transformers runs hooks again when it computes activations again")

    def saved_numbers() -> int:
        saved = list[int]()

        def keep(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with (
            vitcop_llava.prune(model, budget("1/3")),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            model(**given)
        return sum(saved)

    model.train()
    name = "gradient" if not hasattr(model, "activation_checkpointing_enable") else "activation"
    whole = saved_numbers()
    getattr(model, f"{name}_checkpointing_enable")()
    try:
        assert saved_numbers() < whole / 2
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
        model.eval()
