"""Models that were compiled, before the block or inside it, whole or in part, are pruned as others are."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import FastV, ViTCoP

Make = Callable[..., Tensor]
METHOD = ViTCoP(ratios=(0.5, 0.25, 0.1), layers=(1, 2), cutoff_distance=3.0)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


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


def compile_base(model: Any) -> Any:
    model.model.forward = torch.compile(model.model.forward, backend="eager")
    return model


def compile_tower(model: Any) -> Any:
    model.model.vision_tower.compile(backend="eager")
    return model


def compile_language_model(model: Any) -> Any:
    model.model.language_model.compile(backend="eager")
    return model


def compile_layers(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


# Compiling takes seconds, so each way is tried once, with a cache or without one.
WAYS = {
    "whole": (compile_whole, True),
    "in-place": (compile_in_place, True),
    "caller": (compile_caller, True),
    "base": (compile_base, True),
    "tower": (compile_tower, True),
    "language-model": (compile_language_model, False),
    "layers": (compile_layers, False),
}


@pytest.mark.parametrize("name", WAYS)
def test_compiled_before_is_pruned(own: Any, given: dict[str, Any], name: str) -> None:
    way, given["use_cache"] = WAYS[name]
    # Positions, as generate passes them: nothing but the hooks then tells a pruned call from another.
    given["position_ids"] = torch.arange(given["input_ids"].shape[1])[None]
    plain = own(**given).logits
    with vitcop_llava.prune(own, METHOD):
        wanted = own(**given).logits
    run = way(own)
    torch.testing.assert_close(run(**given).logits, plain, rtol=0, atol=5e-6)
    with vitcop_llava.prune(own, METHOD) as pruner:
        torch.testing.assert_close(run(**given).logits, wanted, rtol=0, atol=5e-6)
        assert pruner.report.pruned
    torch.testing.assert_close(run(**given).logits, plain, rtol=0, atol=5e-6)


@pytest.mark.parametrize("way", [compile_forward, compile_tower])
def test_compiled_inside_is_pruned(own: Any, given: dict[str, Tensor], way: Callable[[Any], Any]) -> None:
    plain = own(**given).logits
    with vitcop_llava.prune(own, METHOD) as pruner:
        wanted = own(**given).logits
        run = way(own)
        torch.testing.assert_close(run(**given).logits, wanted, rtol=0, atol=5e-6)
        assert pruner.report.pruned
    torch.testing.assert_close(run(**given).logits, plain, rtol=0, atol=5e-6)


def test_compiled_before_generates(own: Any, given: dict[str, Tensor]) -> None:
    method = FastV(retained_tokens=100)
    with vitcop_llava.prune(own, method):
        wanted = own.generate(**given, max_new_tokens=2)
    own.forward = torch.compile(own.forward, backend="eager")
    own.generate(**given, max_new_tokens=1)
    with vitcop_llava.prune(own, method):
        assert torch.equal(own.generate(**given, max_new_tokens=2), wanted)


def test_compiled_wrapper_is_opened(own: Any) -> None:
    run: Any = torch.compile(own, backend="eager")
    with vitcop_llava.prune(run, METHOD), pytest.raises(ValueError, match="model must not be pruned already"):
        vitcop_llava.prune(own, METHOD)


@pytest.mark.parametrize("family", ["llava", "next"])
def test_keep_all_is_one_graph(
    own: Any, next_model: Any, given: dict[str, Tensor], next_inputs: Any, family: str
) -> None:
    model, inputs = (own, given) if family == "llava" else (next_model, next_inputs([[2, (96, 96), 3]]))
    # Text alone where no graph can hold the images of the bare model: transformers takes LLaVA-NeXT's sizes apart on
    # the host, and torch 2.11 cannot trace how images are put into the prompt.
    if family == "next" or torch.__version__ < "2.13":
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        inputs["input_ids"] = inputs["input_ids"].clamp(max=model.config.image_token_id - 1)
    model(**inputs)  # transformers puts hooks of its own on a model as it first runs, which no graph may hold
    run: Any = torch.compile(model.forward, backend="eager", fullgraph=True)
    wanted = run(**inputs).logits
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)):
        assert torch.equal(run(**inputs).logits, wanted)


def test_one_graph_of_a_pruned_model_is_refused_by_name(own: Any, given: dict[str, Tensor]) -> None:
    run: Any = torch.compile(own, backend="eager", fullgraph=True)
    with vitcop_llava.prune(own, METHOD), pytest.raises(torch._dynamo.exc.Unsupported, match="vitcop prunes here"):
        run(**given)


@pytest.mark.parametrize("method", [METHOD, FastV(retained_tokens=100)], ids=["vitcop", "fastv"])
def test_export_of_a_pruned_model_is_refused(own: Any, given: dict[str, Tensor], method: Any) -> None:
    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = own

        def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
            return self.model(input_ids=input_ids, pixel_values=pixel_values, use_cache=False).logits

    inputs = given["input_ids"], given["pixel_values"]
    with (
        vitcop_llava.prune(own, method),
        pytest.raises(ValueError, match="model must not be exported or traced into one graph while it is pruned"),
    ):
        torch.export.export(Whole(), inputs, strict=False)
