"""Replayed prefills: on a CPU the same layers run from the same recordings, without a graph around them."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CompileConfig

import vitcop_llava
from vitcop_core import DivPrune, FastV, Method, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_llava.hooks import graphs
from vitcop_llava.hooks.graphs import Graphs

Make = Callable[..., Tensor]

pytestmark = pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")

METHODS: dict[str, Method] = {
    "key norms": ViTCoP(retention_ratio=1 / 4),
    "attention": ViTCoP(retention_ratio=1 / 4, saliency="attention"),
    "official": ViTCoP(retention_ratio=1 / 4, compat="official"),
    "FastV": FastV(retention_ratio=1 / 3),
    "PyramidDrop": PyramidDrop(retention_ratio=1 / 2),
    "SparseVLM": SparseVLM(retention_ratio=1 / 2),
    "VisionZip": VisionZip(retention_ratio=1 / 4),
    "DivPrune": DivPrune(retention_ratio=1 / 4),
    "VisPruner": VisPruner(retention_ratio=1 / 4),
}
RECORDED = 2
"""Prefills of a shape until all that follow are replayed."""


def same(found: Any, wanted: Any) -> None:
    """Compares logits and caches, to the bit."""
    assert torch.equal(found.logits, wanted.logits)
    for one, other in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@pytest.fixture
def ran(model: Any) -> Iterator[list[int]]:
    """The decoder layers whose forward ran, in turn."""
    found = list[int]()
    with watching(model, found):
        yield found


@contextmanager
def watching(model: Any, found: list[int]) -> Iterator[None]:
    kind = type(model.model.language_model.layers[0])
    forward = kind.forward

    @wraps(forward)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(self.self_attn.layer_idx)
        return forward(self, *args, **kwargs)

    kind.forward = noted
    try:
        yield
    finally:
        kind.forward = forward


@pytest.mark.parametrize("name", METHODS)
def test_replayed_prefill_is_the_prefill(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    given = {"input_ids": torch.cat([prompt(3, "image", 8), prompt(3, "image", 8, seed=1)])}
    first, other = ({**given, "pixel_values": pictures(2, seed=seed)} for seed in (0, 1))
    with vitcop_llava.prune(model, METHODS[name]):
        wanted = [model(**first), model(**other)]
    with vitcop_llava.prune(model, METHODS[name], capture=True) as pruner:
        same(model(**first), wanted[0])
        assert pruner.uncaptured == "its shapes were new"
        same(model(**other), wanted[1])
        assert pruner.uncaptured is None
        kept = model(**first)
        model(**other)
        same(kept, wanted[0])  # nothing that a caller holds is written to again
        survivors = pruner.survivors(1).stages
    with vitcop_llava.prune(model, METHODS[name]) as pruner:
        model(**other)
        for one, plain in zip(survivors, pruner.survivors(1).stages, strict=True):
            assert torch.equal(one.patches, plain.patches)


def test_tiles_are_replayed(next_model: Any, next_inputs: Callable[..., dict[str, Any]]) -> None:
    given = next_inputs([[4, (90, 60), 3]])
    with vitcop_llava.prune(next_model, METHODS["key norms"]):
        wanted = next_model.generate(**given, max_new_tokens=6, do_sample=False)
    with vitcop_llava.prune(next_model, METHODS["key norms"], capture=True) as pruner:
        for _ in range(RECORDED + 1):
            assert torch.equal(next_model.generate(**given, max_new_tokens=6, do_sample=False), wanted)
        assert pruner.uncaptured is None


def test_layers_run_once_for_a_segment_and_decoding_is_as_ever(
    model: Any, prompt: Make, pictures: Make, ran: list[int]
) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, METHODS["attention"], capture=True):
        for _ in range(RECORDED):
            output = model(**given)
        ran.clear()
        output = model(**given)
        assert ran == [*range(8)]  # on a CPU a replay runs them, each once
        ran.clear()
        model(input_ids=given["input_ids"][:, :1], past_key_values=output.past_key_values)
        assert ran == [*range(8)]
        assert not [layer for layer in model.model.language_model.layers if "forward" in vars(layer)]


def padded(model: Any, prompt: Make, pictures: Make, pad: Any) -> dict[str, Any]:
    return {**pad([prompt(3, "image", 8), prompt("image", 2)]), "pixel_values": pictures(2)}


OBSTACLES: dict[str, tuple[str, Callable[[Any], Any]]] = {}


def obstacle(told: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def note(changed: Callable[[Any], Any]) -> Callable[[Any], Any]:
        OBSTACLES[changed.__name__.replace("_", " ")] = (told, contextmanager(changed))
        return changed

    return note


@obstacle("a Linear has hooks")
def a_forward_hook(model: Any) -> Iterator[None]:
    handle = model.model.language_model.layers[3].mlp.up_proj.register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@obstacle("a LlamaDecoderLayer has hooks")
def a_hook_before_a_layer(model: Any) -> Iterator[None]:
    handle = model.model.language_model.layers[3].register_forward_pre_hook(lambda *_: None)
    yield
    handle.remove()


@obstacle("a CLIPEncoderLayer has hooks")
def a_hook_before_a_layer_of_the_tower(model: Any) -> Iterator[None]:
    handle = model.model.vision_tower.encoder.layers[0].register_forward_pre_hook(lambda *_: None)
    yield
    handle.remove()


@obstacle("the forward of a LlamaMLP was replaced")
def a_replaced_forward(model: Any) -> Iterator[None]:
    part = model.model.language_model.layers[5].mlp
    vars(part)["forward"] = lambda hidden: 2 * type(part).forward(part, hidden)
    yield
    del vars(part)["forward"]


class _Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@obstacle("_Twice in it")
def a_part_of_another_kind(model: Any) -> Iterator[None]:
    part = model.model.language_model.layers[5].mlp
    before = part.up_proj
    part.up_proj = _Twice(before.in_features, before.out_features, bias=False)
    part.up_proj.weight = before.weight
    yield
    part.up_proj = before


@obstacle("training mode")
def training_mode(model: Any) -> Iterator[None]:
    model.train()
    yield
    model.eval()


@obstacle("gradients are recorded")
def gradients(model: Any) -> Iterator[None]:
    with torch.enable_grad():
        yield


@obstacle("autocast is on")
def autocast(model: Any) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@obstacle("another attention than SDPA")
def eager_attention(model: Any) -> Iterator[None]:
    config = model.model.language_model.config
    config._attn_implementation = "eager"
    yield
    config._attn_implementation = "sdpa"


@obstacle("hidden states or attention maps are asked for")
def hidden_states(model: Any) -> Iterator[None]:
    config = model.model.language_model.config
    config.output_hidden_states = True
    yield
    config.output_hidden_states = False


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_replayed_runs_as_it_is(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    told, changed = OBSTACLES[name]
    with changed(model), vitcop_llava.prune(model, METHODS["key norms"]):
        wanted = model(**given)
    with vitcop_llava.prune(model, METHODS["key norms"], capture=True) as pruner:
        for _ in range(RECORDED):
            model(**given)
        assert pruner.uncaptured is None
        with changed(model):  # also where the same shape has been recorded before
            same(model(**given), wanted)
            assert told in str(pruner.uncaptured)
        model(**given)
        assert pruner.uncaptured is None


def test_prompts_that_need_masks_or_go_on_run_as_they_are(model: Any, prompt: Make, pictures: Make, pad: Any) -> None:
    rows = padded(model, prompt, pictures, pad)
    turn = {"input_ids": prompt(2, "image", 4), "pixel_values": pictures(seed=3)}
    with vitcop_llava.prune(model, METHODS["key norms"]):
        wanted = model(**rows)
        first = model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
        further = model(**turn, past_key_values=first.past_key_values)
    with vitcop_llava.prune(model, METHODS["key norms"], capture=True) as pruner:
        for _ in range(RECORDED):
            same(model(**rows), wanted)
            assert "a mask is needed" in str(pruner.uncaptured)
        for _ in range(RECORDED + 1):
            first = model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
            same(model(**turn, past_key_values=first.past_key_values), further)
            assert pruner.uncaptured == "it goes on from a cache"
        uncached = model(**turn, use_cache=False)
        assert pruner.uncaptured == "there is no cache"
        assert torch.equal(uncached.logits, model(**turn).logits)


def test_new_weights_are_read(build: Callable[..., Any], prompt: Make, pictures: Make) -> None:
    model = copy.deepcopy(build())
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    layer, tower = model.model.language_model.layers[4].mlp.up_proj, model.model.vision_tower.encoder.layers[0]
    method = METHODS["key norms"]
    with vitcop_llava.prune(model, method, capture=True) as pruner:
        for _ in range(RECORDED):
            before = model(**given).logits
        layer.weight = nn.Parameter(2 * layer.weight)
        tower.mlp.fc1.weight.data = 2 * tower.mlp.fc1.weight.data
        for _ in range(RECORDED):
            found = model(**given).logits
        assert pruner.uncaptured is None
        layer.weight.data.mul_(2)  # in place: what was recorded reads it
        in_place = model(**given).logits
    with vitcop_llava.prune(model, method):
        assert torch.equal(model(**given).logits, in_place)
        layer.weight.data.div_(2)
        assert torch.equal(model(**given).logits, found)
    assert not torch.equal(found, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_static_caches_are_filled_by_replays_and_decoded_in_graphs(model: Any, prompt: Make, pictures: Make) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    how = {"max_new_tokens": 6, "do_sample": False}
    settings: Any = CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    with vitcop_llava.prune(model, METHODS["key norms"]):
        wanted = model.generate(**given, **how)
    with vitcop_llava.prune(model, METHODS["key norms"], capture=True) as pruner:
        for compiled in ({}, {}, {}, {"compile_config": settings}):
            found = model.generate(**given, **how, cache_implementation="static", **compiled)
            assert torch.equal(found, wanted)
        assert pruner.uncaptured is None


def test_threads_share_recordings(model: Any, prompt: Make, pictures: Make) -> None:
    each = [{"input_ids": prompt(3, "image", 8, seed=n), "pixel_values": pictures(seed=n)} for n in range(4)]

    def answer(given: dict[str, Any]) -> list[Any]:
        with torch.no_grad():
            return [model(**given) for _ in range(6)]

    with vitcop_llava.prune(model, METHODS["key norms"]):
        wanted = [answer(given)[0] for given in each]
    with vitcop_llava.prune(model, METHODS["key norms"], capture=True), ThreadPoolExecutor(4) as pool:
        for found, plain in zip(pool.map(answer, each), wanted, strict=True):
            for output in found:
                same(output, plain)


def test_copies_are_of_the_model_as_it_was(model: Any, prompt: Make, pictures: Make) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    copies = []
    handle = model.model.language_model.norm.register_forward_hook(lambda *_: copies.append(copy.deepcopy(model)))
    wanted = model(**given).logits
    copies.clear()
    with vitcop_llava.prune(model, METHODS["key norms"], capture=True):
        for _ in range(RECORDED + 1):
            model(**given)
    handle.remove()
    for copied in copies:
        copied.model.language_model.norm._forward_hooks.clear()
        assert not [name for name, part in copied.named_modules() if "forward" in vars(part)]
        assert torch.equal(copied(**given).logits, wanted)


def test_keeping_all_is_the_unpruned_model(model: Any, prompt: Make, pictures: Make) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    wanted = model(**given)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1), capture=True) as pruner:
        for _ in range(RECORDED + 1):
            same(model(**given), wanted)
        assert pruner.uncaptured == "nothing was pruned"
    with vitcop_llava.prune(model, METHODS["key norms"]) as pruner:
        assert pruner.uncaptured == "prune was not asked to capture; give it capture=True"


def test_capture_must_be_a_bool(model: Any) -> None:
    given: Any = "yes"
    with pytest.raises(TypeError, match=r"capture must be True or False, got 'yes'"):
        vitcop_llava.prune(model, METHODS["FastV"], capture=given)


def test_recordings_that_were_used_longest_ago_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_GRAPHS", 2)
    kept, calls = Graphs(), list[int]()

    def work(given: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(given))
        return (given + 1,)

    for length in (1, 2, 1, 2, 1, 3, 3):
        kept.run("key", work, (torch.zeros(length),))
    assert len(kept) == 2
    assert isinstance(kept.run("key", work, (torch.zeros(1),)), list)
    kept.run("key", work, (torch.zeros(2),))  # recorded anew, in place of that for 3
    assert kept.run("key", work, (torch.ones(1),)) == [torch.full((1,), 2.0)]


def test_what_fails_to_be_recorded_is_not_tried_again() -> None:
    kept, tried = Graphs(), list[int]()

    class Fails(graphs.Graph):
        def __init__(self, *_: Any, **__: Any) -> None:
            tried.append(1)
            raise RuntimeError("operation not permitted\nwhile recording")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "Graph", Fails)
        told = [kept.run("key", lambda given: (given,), (torch.zeros(1),)) for _ in range(4)]
    assert told == ["its shapes were new", *["it cannot be recorded: operation not permitted"] * 3]
    assert len(tried) == 1
