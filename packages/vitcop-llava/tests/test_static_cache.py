"""Static caches: as long as each layer's plan leaves, and with the tokens of the dynamic cache."""

import copy
import gc
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from static_caches import CUTS, METHODS
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vitcop_llava
from vitcop_core import LanguageModelShape
from vitcop_llava import ViTCoP

Make = Callable[..., Tensor]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "twice": {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
}
SHAPE = LanguageModelShape(8, 32, 48, 4, 2, 8)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def fixed(model: Any, room: int = 400) -> StaticCache:
    return StaticCache(config=model.config.text_config, max_cache_len=room)


def lengths(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]


@by_name
@pytest.mark.parametrize("mode", MODES)
def test_generates_as_with_a_dynamic_cache(model: Any, batch: dict[str, Any], method: Any, mode: str) -> None:
    given = {**batch, **MODES[mode], "max_new_tokens": 6}
    with vitcop_llava.prune(model, method):
        wanted = model.generate(**given)
        assert torch.equal(model.generate(**given, cache_implementation="static"), wanted)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_generates_so_in_other_decoders(
    build: Callable[..., Any], prompt: Make, pictures: Make, kind: str, attention: str
) -> None:
    model, ids = build(kind, attention), prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(), "max_new_tokens": 4}
    with vitcop_llava.prune(model, CUTS):
        wanted = model.generate(**given)
        assert torch.equal(model.generate(**given, cache_implementation="static"), wanted)


@by_name
@pytest.mark.parametrize("beams", [1, 2])
def test_generates_so_from_tiles(next_model: Any, next_inputs: Any, method: Any, beams: int) -> None:
    if beams > 1 and "mm_encoder_outputs" not in inspect.signature(next_model.forward).parameters:
        pytest.skip("this transformers encodes after it has made the beams, and repeats tensors alone for them")
    given = {**next_inputs([[2, (131, 77), 3], [4], [(48, 96), 2, (96, 96), 1]]), "num_beams": beams}
    with vitcop_llava.prune(next_model, method):
        wanted = next_model.generate(**given, max_new_tokens=4)
        assert torch.equal(next_model.generate(**given, max_new_tokens=4, cache_implementation="static"), wanted)


@by_name
def test_bytes_are_those_of_the_plan(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    ids, room = prompt(3, "image", 8), 400
    with vitcop_llava.prune(model, method) as pruner:
        cache = fixed(model, room)
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        plan = pruner.report.rows[0].plan
    assert plan is not None
    layers: Any = cache.layers
    found = [sum(held.untyped_storage().nbytes() for held in (layer.keys, layer.values)) for layer in layers]
    assert tuple(found) == plan.kv_bytes_per_layer(SHAPE, room - 144, bytes_per_element=4)
    assert sum(found) < 8 * 2 * room * 2 * 8 * 4


def test_lengths_outside_are_logical(model: Any, prompt: Make, pictures: Make) -> None:
    ids, cache = prompt(3, "image", 8), fixed(model)
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        assert [int(cache.get_seq_length(layer)) for layer in range(8)] == [ids.shape[1]] * 8
        model(input_ids=prompt(1), past_key_values=cache)
        model(input_ids=prompt()[:, :1], past_key_values=cache)
        assert int(cache.get_seq_length()) == ids.shape[1] + 3
        assert cache.get_max_length() == 400
        kinds = {type(layer).__name__ for layer in cache.layers}
    assert isinstance(cache, StaticCache)
    assert cache.is_compileable
    assert kinds == {"PrunedStaticLayer"}


@by_name
def test_turns_equal_those_of_a_dynamic_cache(model: Any, prompt: Make, pictures: Make, pad: Any, method: Any) -> None:
    """A turn in text, tokens, and an image that joins: the buffers shrink by what it loses."""
    rows = pad([prompt(3, "image", 8), prompt("image", 4, seed=1)])
    first = rows["attention_mask"].cumsum(1) - 1
    text, joins = torch.cat([prompt(5, seed=3), prompt(5, seed=4)]), torch.cat([prompt("image", 4, seed=5)] * 2)
    outputs = []
    with vitcop_llava.prune(model, method):
        for cache in (DynamicCache(), fixed(model)):
            given: dict[str, Any] = {"past_key_values": cache}
            mask, last, found = rows["attention_mask"], first[:, -1:], []
            model(**rows, position_ids=first.clamp(min=0), pixel_values=pictures(2), **given)
            before = [] if isinstance(cache, DynamicCache) else lengths(cache)
            for ids, pixels in ((text, None), (text[:, :1], None), (joins, pictures(2, seed=4)), (text[:, :1], None)):
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
                places = last + 1 + torch.arange(ids.shape[1])
                more = {} if pixels is None else {"pixel_values": pixels}
                found.append(model(input_ids=ids, attention_mask=mask, position_ids=places, **more, **given).logits)
                last = places[:, -1:]
            outputs.append(found)
            if before:
                # A cut at a layer drops nothing in those before it.
                assert all(after <= had for after, had in zip(lengths(cache), before, strict=True))
                assert sum(lengths(cache)) < sum(before)
    for found, wanted in zip(*outputs, strict=True):
        close(found, wanted)


def test_generate_goes_on_in_a_static_cache(model: Any, prompt: Make, pictures: Make) -> None:
    ids = prompt(3, "image", 8)
    answers = []
    with vitcop_llava.prune(model, CUTS):
        for cache in (DynamicCache(), fixed(model)):
            given: dict[str, Any] = {"past_key_values": cache, "max_new_tokens": 4}
            first = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures(), **given)
            whole = torch.cat([first, prompt(4, seed=2)], dim=1)
            second = model.generate(input_ids=whole, attention_mask=torch.ones_like(whole), **given)
            again = torch.cat([second, prompt(2, "image", 4, seed=6)], dim=1)
            third = model.generate(
                input_ids=again, attention_mask=torch.ones_like(again), pixel_values=pictures(1, seed=3), **given
            )
            answers.append(third)
    assert torch.equal(*answers)


@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
def test_image_after_text(model: Any, prompt: Make, pictures: Make, early: bool) -> None:
    """What a plain static cache holds moves to buffers of the right size, and room made ahead is given back."""
    text, ids, cache = prompt(6, seed=1), prompt(3, "image", 8), fixed(model)
    if early:
        cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=text, past_key_values=cache)
        found = model(input_ids=ids, pixel_values=pictures(), past_key_values=cache).logits
        wanted = model(input_ids=torch.cat([text, ids], dim=1), pixel_values=pictures()).logits
    close(found, wanted[:, text.shape[1] :])
    assert lengths(cache) == [400 - 72] * 2 + [400 - 108] * 2 + [400 - 130] * 4


@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
def test_room_made_ahead_is_given_back(model: Any, prompt: Make, pictures: Make, early: bool) -> None:
    cache = fixed(model)
    if early:
        cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
    assert lengths(cache) == [328] * 2 + [292] * 2 + [270] * 4


def test_reset_cache_takes_another_prompt(model: Any, prompt: Make, pictures: Make) -> None:
    cache = fixed(model)
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        cache.reset()
        assert int(cache.get_seq_length()) == 0
        text = model(input_ids=prompt(5), past_key_values=cache).logits
        assert lengths(cache) == [400] * 8
        cache.reset()
        ids = prompt(4, "image", 2, seed=8)
        found = model(input_ids=ids, pixel_values=pictures(), past_key_values=cache).logits
        close(found, model(input_ids=ids, pixel_values=pictures()).logits)
    close(text, model(input_ids=prompt(5)).logits)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_copy_goes_on_by_itself(model: Any, prompt: Make, pictures: Make, make: Callable[[Any], Any]) -> None:
    cache, token = fixed(model), prompt()[:, :1]
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        other = make(cache)
        if make is copy.deepcopy:
            wanted = model(input_ids=token, past_key_values=cache).logits
        else:
            wanted = model(input_ids=token, past_key_values=copy.deepcopy(cache)).logits
        del cache
        gc.collect()
        assert torch.equal(model(input_ids=token, past_key_values=other).logits, wanted)


@pytest.mark.parametrize("number", [0, 3, -1])
def test_cache_with_a_layer_that_was_copied_goes_on(model: Any, prompt: Make, pictures: Make, number: int) -> None:
    cache, token = fixed(model), prompt()[:, :1]
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        wanted = [model(input_ids=token, past_key_values=other).logits for other in [copy.deepcopy(cache)] * 2]
        cache.layers[number] = copy.deepcopy(cache.layers[number])
        found = [model(input_ids=token, past_key_values=cache).logits for _ in wanted]
    assert all(map(torch.equal, found, wanted))


@by_name
def test_too_short_for_the_prompt_is_refused(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    with (
        vitcop_llava.prune(model, method),
        pytest.raises(ValueError, match=r"past_key_values must have room .* StaticCache of 150 tokens for 156"),
    ):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=fixed(model, 150))


def test_too_short_for_the_answer_is_refused(model: Any, prompt: Make, pictures: Make) -> None:
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, CUTS):
        model.generate(**given, past_key_values=fixed(model, 159), max_new_tokens=4)
        with pytest.raises(ValueError, match=r"past_key_values must have room .* StaticCache of 158 tokens for 159"):
            model.generate(**given, past_key_values=fixed(model, 158), max_new_tokens=4)


def test_static_keep_all_is_the_unpruned_model(model: Any, batch: dict[str, Any]) -> None:
    how: dict[str, Any] = {"cache_implementation": "static", "max_new_tokens": 5, "output_logits": True}
    how["return_dict_in_generate"] = True
    plain = model.generate(**batch, **how)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)):
        kept = model.generate(**batch, **how)
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


def test_text_alone_is_the_unpruned_model(model: Any, prompt: Make) -> None:
    ids = torch.cat([prompt(6, seed=seed) for seed in range(2)])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    how: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 5}
    wanted = model.generate(**how, cache_implementation="static")
    with vitcop_llava.prune(model, CUTS):
        assert torch.equal(model.generate(**how, cache_implementation="static"), wanted)


def test_window_that_holds_the_sequence(build: Callable[..., Any], prompt: Make, pictures: Make) -> None:
    model = copy.deepcopy(build("mistral"))
    model.config.text_config.sliding_window = 170
    model.model.language_model.config.sliding_window = 170
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, CUTS):
        wanted = model.generate(**given, max_new_tokens=6)
        assert torch.equal(model.generate(**given, max_new_tokens=6, cache_implementation="static"), wanted)
        with pytest.raises(ValueError, match=r"past_key_values must have room .* StaticCache of 170 tokens for 171"):
            model.generate(**given, max_new_tokens=40, cache_implementation="static")


def test_model_that_is_not_pruned_does_not_go_on(model: Any, prompt: Make, pictures: Make) -> None:
    cache = fixed(model)
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
    with pytest.raises(ValueError, match="got a cache that vitcop pruned, and a model that is not"):
        model(input_ids=prompt()[:, :1], past_key_values=cache)


@pytest.mark.parametrize("method", [METHODS[1], ViTCoP(retention_ratio=1)], ids=["fastv", "keep-all"])
def test_another_pruner_goes_on(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    outputs = []
    for cache in (DynamicCache(), fixed(model)):
        with vitcop_llava.prune(model, CUTS):
            model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        with vitcop_llava.prune(model, method):
            tokens = [prompt()[:, :1], prompt(4, seed=1), prompt()[:, :1]]
            outputs.append([model(input_ids=ids, past_key_values=cache).logits for ids in tokens])
    for found, wanted in zip(*outputs, strict=True):
        close(found, wanted)


def test_layers_have_hooks_for_as_long_as_the_cache_lives(model: Any, prompt: Make, pictures: Make) -> None:
    layers = model.model.language_model.layers
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, CUTS):
        model(**given)
        assert not any(layer._forward_pre_hooks for layer in layers)
        cache = fixed(model)
        model(**given, past_key_values=cache)
        assert all(layer._forward_pre_hooks for layer in layers)
        del cache
        gc.collect()
        assert not any(layer._forward_pre_hooks for layer in layers)
        cache = fixed(model)
        model(**given, past_key_values=cache)
    assert not any(layer._forward_pre_hooks for layer in layers)
    del cache
    gc.collect()
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_failed_prefill_leaves_the_cache_closed(model: Any, prompt: Make, pictures: Make) -> None:
    cache = fixed(model)
    with vitcop_llava.prune(model, CUTS):
        handle = model.model.language_model.layers[5].register_forward_pre_hook(lambda *_: 1 / 0)
        try:
            with pytest.raises(ZeroDivisionError):
                model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        finally:
            handle.remove()
        cache.reset()
        found = model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache).logits
        close(found, model(input_ids=prompt(3, "image", 8), pixel_values=pictures()).logits)


def test_threads_have_caches_of_their_own(model: Any, prompt: Make, pictures: Make) -> None:
    def answer(seed: int, **how: Any) -> Tensor:
        ids = prompt(3 + seed, "image", 8, seed=seed)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(1, seed=seed)}
        with torch.no_grad():
            tokens: Tensor = model.generate(**given, max_new_tokens=5, **how)
        return tokens

    with vitcop_llava.prune(model, CUTS), ThreadPoolExecutor(4) as pool:
        wanted = [answer(seed) for seed in range(4)]
        found = [*pool.map(lambda seed: answer(seed, cache_implementation="static"), range(4))]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_mask_of_four_dimensions_is_refused(model: Any, prompt: Make, pictures: Make) -> None:
    cache = fixed(model)
    with vitcop_llava.prune(model, CUTS):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        with pytest.raises(ValueError, match="attention_mask must be 2-D"):
            model(input_ids=prompt()[:, :1], attention_mask=torch.ones(1, 1, 1, 157), past_key_values=cache)
