"""Models that were compiled, before the block or inside it, whole or in part, are pruned as others are."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import FastV, ViTCoP

Make = Callable[..., Tensor]
METHOD = ViTCoP(retained_tokens=24, cutoff_distance=3.0)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def own(build: Callable[..., Any]) -> Any:
    return copy.deepcopy(build())


@pytest.fixture
def given(prompt: Make, pictures: Make) -> dict[str, Tensor]:
    ids = prompt(3, "image", 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}


def compile_whole(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compile_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compile_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compile_caller(model: Any) -> Any:
    def call(**kwargs: Any) -> Any:
        return model(**kwargs)

    return torch.compile(call, backend="eager")


def compile_tower(model: Any) -> Any:
    model.model.vision_tower.compile(backend="eager")
    return model


def compile_attention(model: Any) -> Any:
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn.compile(backend="eager")
    return model


def compile_language_model(model: Any) -> Any:
    model.model.language_model.compile(backend="eager")
    return model


def compile_layers(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


def compile_base(model: Any) -> Any:
    model.model.compile(backend="eager")
    return model


WAYS = [
    compile_whole,
    compile_in_place,
    compile_forward,
    compile_caller,
    compile_base,
    compile_tower,
    compile_attention,
    compile_language_model,
    compile_layers,
]
by_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("compile_"))


@by_way
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_compiled_before_is_pruned(
    own: Any, given: dict[str, Tensor], way: Callable[[Any], Any], use_cache: bool
) -> None:
    # Positions, as generate passes them: nothing but the hooks then tells a pruned call from another.
    given["position_ids"] = torch.arange(given["input_ids"].shape[1])[None]
    plain = own(**given, use_cache=use_cache).logits
    with vitcop_llava.prune(own, METHOD):
        wanted = own(**given, use_cache=use_cache).logits
    run = way(own)
    torch.testing.assert_close(run(**given, use_cache=use_cache).logits, plain, rtol=0, atol=5e-6)
    with vitcop_llava.prune(own, METHOD) as pruner:
        torch.testing.assert_close(run(**given, use_cache=use_cache).logits, wanted, rtol=0, atol=5e-6)
        assert pruner.report.pruned
    torch.testing.assert_close(run(**given, use_cache=use_cache).logits, plain, rtol=0, atol=5e-6)


@pytest.mark.parametrize("way", [compile_whole, compile_forward, compile_tower, compile_language_model])
def test_compiled_inside_is_pruned(own: Any, given: dict[str, Tensor], way: Callable[[Any], Any]) -> None:
    plain = own(**given).logits
    with vitcop_llava.prune(own, METHOD) as pruner:
        wanted = own(**given).logits
        run = way(own)
        torch.testing.assert_close(run(**given).logits, wanted, rtol=0, atol=5e-6)
        assert pruner.report.pruned
    torch.testing.assert_close(run(**given).logits, plain, rtol=0, atol=5e-6)


@pytest.mark.parametrize("way", [compile_forward, compile_in_place])
@pytest.mark.parametrize("method", [METHOD, FastV(retained_tokens=60)], ids=["vitcop", "fastv"])
def test_compiled_before_generates(own: Any, given: dict[str, Tensor], way: Callable[[Any], Any], method: Any) -> None:
    with vitcop_llava.prune(own, method):
        wanted = own.generate(**given, max_new_tokens=3)
    run = way(own)
    run.generate(**given, max_new_tokens=2)
    with vitcop_llava.prune(own, method):
        assert torch.equal(run.generate(**given, max_new_tokens=3), wanted)


def test_compiled_wrapper_is_opened(own: Any, given: dict[str, Tensor]) -> None:
    run = compile_whole(own)
    with vitcop_llava.prune(run, METHOD) as pruner:
        run(**given)
        assert pruner.report.pruned


@pytest.mark.parametrize("family", ["llava", "next"])
def test_keep_all_is_one_graph(
    own: Any, next_model: Any, given: dict[str, Tensor], next_inputs: Any, family: str
) -> None:
    model, inputs = (own, given) if family == "llava" else (next_model, next_inputs([[2, (96, 96), 3]]))
    if family == "next":  # transformers takes sizes apart on the host
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        inputs["input_ids"] = inputs["input_ids"].clamp(max=next_model.config.image_token_id - 1)
    wanted = torch.compile(model.forward, backend="eager", fullgraph=True)(**inputs).logits
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)):
        found = torch.compile(model.forward, backend="eager", fullgraph=True)(**inputs).logits
    assert torch.equal(found, wanted)


def test_one_graph_of_a_pruned_model_is_refused_by_name(own: Any, given: dict[str, Tensor]) -> None:
    run = torch.compile(own, backend="eager", fullgraph=True)
    with vitcop_llava.prune(own, METHOD), pytest.raises(torch._dynamo.exc.Unsupported, match="vitcop prunes here"):
        run(**given)
