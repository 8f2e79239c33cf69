"""Decoding in a static cache is one graph: no break, none again after the first token, and eager's tokens."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, DynamicCache, StaticCache

import vitcop_llava
from vitcop_llava import FastV, ViTCoP

Make = Callable[..., Tensor]
METHOD = ViTCoP(ratios=(0.5, 0.25, 0.1), layers=(1, 2), cutoff_distance=3.0)
ROOM = 240


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that counts what it is given, and runs it with another."""

    def __init__(self, inner: str = "eager") -> None:
        self.inner, self.count = inner, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        return self  # transformers copies settings

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any], **settings: Any) -> Any:
        self.count += 1
        compiled: Any = torch._dynamo.lookup_backend(self.inner)
        return compiled(graph, inputs)


def settings_of(graphs: Graphs) -> Any:
    config: Any = CompileConfig(fullgraph=True, backend=graphs)
    config._compile_all_devices = True  # transformers compiles by itself on GPUs alone
    return config


def fixed(model: Any) -> StaticCache:
    return StaticCache(config=model.config.text_config, max_cache_len=ROOM)


@pytest.fixture
def padded(prompt: Make, pictures: Make, pad: Any) -> dict[str, Any]:
    return {**pad([prompt(3, "image", 8), prompt(1, "image", 4, seed=1)]), "pixel_values": pictures(2)}


def decoded(forward: Callable[..., Any], cache: Any, first: Tensor, mask: Tensor, tokens: int) -> list[Tensor]:
    """The logits of so many tokens, each the likeliest after the one before; rows change places on the way."""
    logits, token, last = [], first, mask.sum(1, keepdim=True)
    whole = torch.nn.functional.pad(mask, (0, ROOM - mask.shape[1]), value=1)
    hides = None if bool(mask.all()) else whole
    for step in range(tokens):
        places = last + step
        out = forward(input_ids=token, position_ids=places, attention_mask=hides, past_key_values=cache)
        logits.append(out.logits)
        token = out.logits[:, -1:].argmax(-1)
        if step % 20 == 19:
            order = torch.arange(len(token)).flip(0)
            cache.reorder_cache(order)
            token, last = token[order], last[order]
            hides = None if hides is None else hides[order]
    return logits


def filled(model: Any, given: dict[str, Any]) -> tuple[StaticCache, Tensor]:
    """A static cache with a prompt, and the token after it."""
    cache, mask = fixed(model), given["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    return cache, model(**given, position_ids=places, past_key_values=cache).logits[:, -1:].argmax(-1)


@pytest.mark.parametrize(
    ("method", "rows"), [(METHOD, "padded"), (FastV(retained_tokens=60), "one")], ids=["vitcop", "fastv"]
)
def test_generate_compiles_one_graph(
    own: Any, given: dict[str, Any], padded: dict[str, Any], method: Any, rows: str, pictures: Make
) -> None:
    inputs, graphs = (given if rows == "one" else padded), Graphs()
    how: dict[str, Any] = {"cache_implementation": "static", "compile_config": settings_of(graphs)}
    with vitcop_llava.prune(own, method):
        wanted = own.generate(**inputs, max_new_tokens=64)
        assert torch.equal(own.generate(**inputs, max_new_tokens=64, **how), wanted)
        assert graphs.count == 1
        inputs["pixel_values"] = pictures(len(wanted), seed=7)
        if rows == "one":  # a shorter prompt: what a layer loses is the same
            inputs["input_ids"], inputs["attention_mask"] = (
                inputs[name][:, :-3] for name in ("input_ids", "attention_mask")
            )
        other = own.generate(**inputs, max_new_tokens=64)
        assert torch.equal(own.generate(**inputs, max_new_tokens=64, **how), other)
        # Older versions of torch hold on to the sizes of tensors that a graph does not read.
        assert graphs.count <= 1 + (torch.__version__ < "2.13")
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not torch.equal(wanted, other)


@pytest.mark.parametrize("rows", ["one", "padded"])
def test_compiled_forward_decodes_in_one_graph(
    own: Any, given: dict[str, Any], padded: dict[str, Any], rows: str
) -> None:
    inputs, graphs = (given if rows == "one" else padded), Graphs("aot_eager")
    with vitcop_llava.prune(own, METHOD):
        cache, token = filled(own, inputs)
        wanted = decoded(own, copy.deepcopy(cache), token, inputs["attention_mask"], 64)
        run = torch.compile(own.forward, backend=graphs, fullgraph=True)
        found = decoded(run, cache, token, inputs["attention_mask"], 64)
    assert graphs.count == 1
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), rtol=0, atol=5e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_decodes_so(own: Any, given: dict[str, Any]) -> None:
    model = copy.deepcopy(own)
    del model.model.language_model.layers[2]
    model.config.text_config.num_hidden_layers = 2
    with vitcop_llava.prune(model, FastV(retained_tokens=100, layer=1)):
        cache, token = filled(model, given)
        wanted = decoded(model, copy.deepcopy(cache), token, given["attention_mask"], 64)
        run = torch.compile(model.forward, fullgraph=True)
        found = decoded(run, cache, token, given["attention_mask"], 64)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), rtol=0, atol=1e-5)


def test_compiled_before_inside_and_after(own: Any, given: dict[str, Any]) -> None:
    """One compiled forward is the bare model's outside of the block, and the pruned one's inside."""
    graphs, mask = Graphs(), given["attention_mask"]
    plain_cache, plain_token = filled(own, given)
    plain = decoded(own, copy.deepcopy(plain_cache), plain_token, mask, 3)
    run = torch.compile(own.forward, backend=graphs, fullgraph=True)
    found = decoded(run, copy.deepcopy(plain_cache), plain_token, mask, 3)
    torch.testing.assert_close(found, plain, rtol=0, atol=5e-6)
    for counted in (0, 3):
        assert counted in (0, graphs.count)
        with vitcop_llava.prune(own, METHOD):
            cache, token = filled(own, given)
            wanted = decoded(own, copy.deepcopy(cache), token, mask, 3)
            torch.testing.assert_close(decoded(run, cache, token, mask, 3), wanted, rtol=0, atol=5e-6)
            # A cache that nothing was dropped in goes on as it is.
            found = decoded(run, copy.deepcopy(plain_cache), plain_token, mask, 3)
            torch.testing.assert_close(found, plain, rtol=0, atol=5e-6)
        found = decoded(run, copy.deepcopy(plain_cache), plain_token, mask, 3)
        torch.testing.assert_close(found, plain, rtol=0, atol=5e-6)
        with pytest.raises((ValueError, torch._dynamo.exc.Unsupported), match="a cache that vitcop pruned"):
            decoded(run, cache, token, mask, 1)
    assert graphs.count == 3
    assert max(float((a - b).abs().max()) for a, b in zip(plain, wanted, strict=True)) > 1e-2


def test_prompt_in_one_graph_is_refused_with_the_way_out(own: Any, given: dict[str, Any]) -> None:
    run: Any = torch.compile(own.forward, backend="eager", fullgraph=True)
    with (
        vitcop_llava.prune(own, METHOD),
        pytest.raises(torch._dynamo.exc.Unsupported, match=r"vitcop prunes here.*call the model itself for the prompt"),
    ):
        run(**given, past_key_values=fixed(own))


def test_compiled_model_in_place_generates(own: Any, given: dict[str, Any]) -> None:
    """As the documentation of transformers has it: generate calls the compiled forward for the prompt too."""
    with vitcop_llava.prune(own, FastV(retained_tokens=60)):
        wanted = own.generate(**given, max_new_tokens=6)
    own.forward = torch.compile(own.forward, backend="eager")
    with vitcop_llava.prune(own, FastV(retained_tokens=60)):
        assert torch.equal(own.generate(**given, max_new_tokens=6, cache_implementation="static"), wanted)


def test_another_pruner_goes_on_compiled(own: Any, given: dict[str, Any]) -> None:
    """Once a token has shown it the cache."""
    mask = given["attention_mask"]
    with vitcop_llava.prune(own, METHOD):
        cache, token = filled(own, given)
        wanted = decoded(own, copy.deepcopy(cache), token, mask, 3)
    with vitcop_llava.prune(own, FastV(retained_tokens=60)):
        run = torch.compile(own.forward, backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="vitcop prunes here"):
            decoded(run, copy.deepcopy(cache), token, mask, 1)
        first = decoded(own, cache, token, mask, 1)
        next_mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        rest = decoded(run, cache, first[0][:, -1:].argmax(-1), next_mask, 2)
    torch.testing.assert_close([*first, *rest], wanted, rtol=0, atol=5e-6)


def test_text_alone_compiles_as_unpruned(own: Any, prompt: Make) -> None:
    ids, graphs = prompt(9), Graphs()
    how: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 12}
    wanted = own.generate(**how, cache_implementation="static")
    with vitcop_llava.prune(own, METHOD):
        found = own.generate(**how, cache_implementation="static", compile_config=settings_of(graphs))
    assert torch.equal(found, wanted)
    assert graphs.count == 1


def test_dynamic_cache_in_one_graph_is_refused_by_name(own: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(own, METHOD):
        cache = DynamicCache()
        own(**given, past_key_values=cache)
        run: Any = torch.compile(own.forward, backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="steps of one token with a StaticCache"):
            run(input_ids=given["input_ids"][:, :1], past_key_values=cache)
