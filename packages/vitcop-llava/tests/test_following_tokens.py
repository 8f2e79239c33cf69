"""Tokens after a pruned growing cache: they open no call, and have hooks in the layers only where these differ.

Whatever happens between two of them, each gives what it gives in a call of its own.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import finalize

import pytest
import torch
from static_caches import filled
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_llava.hooks import calls, stepping

Make = Callable[..., Tensor]
Change = Callable[[Any, DynamicCache], DynamicCache]
METHODS = {
    "ViTCoP": ViTCoP(retained_tokens=16, cutoff_distance=3.0),
    "FastV": FastV(retained_tokens=32),
    "VisionZip": VisionZip(retained_tokens=16),
    "PyramidDrop": PyramidDrop(retained_tokens=48),
    "SparseVLM": SparseVLM(retained_tokens=32),
    "DivPrune": DivPrune(retained_tokens=16),
    "VisPruner": VisPruner(retained_tokens=16),
}
WORDS = [7, 31, 8, 55, 12, 90]


class Ways:
    """Whether each forward of a model but the first went without a call; with ``is_off`` none does."""

    def __init__(self, follows: Callable[..., bool]) -> None:
        self._follows, self.taken, self.is_off = follows, list[bool](), False

    def __call__(self, *args: Any) -> bool:
        found = not self.is_off and self._follows(*args)
        self.taken.append(found)
        return found


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    made = Ways(stepping.is_growing_step)
    monkeypatch.setattr(calls, "is_growing_step", made)
    return made


def run(model: Any, given: dict[str, Any], changes: dict[int, Change] | None = None, **settings: Any) -> list[Tensor]:
    """Returns the logits of a prompt's last token and of each word after it; ``changes`` happen before a word."""
    output = model(**given)
    cache, mask, found = output.past_key_values, given["attention_mask"], [output.logits[:, -1]]
    for number, word in enumerate(WORDS):
        if changes and number in changes:
            cache = changes[number](model, cache)
        rows = cache.layers[0].keys.shape[0]
        mask = torch.cat([mask[:1].expand(rows, -1) if rows != len(mask) else mask, mask.new_ones(rows, 1)], dim=1)
        token = torch.full((rows, 1), word)
        output = model(input_ids=token, attention_mask=mask, past_key_values=cache, **settings)
        assert output.past_key_values is cache
        found.append(output.logits[:, -1])
    return found


def check(ways: Ways, model: Any, method: Any, given: dict[str, Any], taken: list[bool], **how: Any) -> None:
    """Asserts that tokens are what they are in calls, to the bit, and which of them went without."""
    with vitcop_llava.prune(model, method):
        found = run(model, given, **how)
        assert ways.taken == taken
        ways.is_off = True
        wanted = run(model, given, **how)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tokens_open_no_call(
    ways: Ways, build: Callable[..., Any], given: dict[str, Any], name: str, attention: str
) -> None:
    check(ways, build(attention=attention), METHODS[name], given, [True] * len(WORDS))


@pytest.mark.parametrize("name", METHODS)
def test_tokens_of_a_padded_batch_open_no_call(ways: Ways, model: Any, batch: dict[str, Any], name: str) -> None:
    check(ways, model, METHODS[name], batch, [True] * len(WORDS))


def _hooks(model: Any) -> int:
    return sum(len(layer._forward_pre_hooks) for layer in model.model.language_model.layers)


@pytest.mark.parametrize("name", METHODS)
def test_layers_have_no_hooks_where_they_are_alike(model: Any, given: dict[str, Any], name: str) -> None:
    is_packed = name in ("PyramidDrop", "SparseVLM")  # whose positions differ from layer to layer
    before = _hooks(model)
    with vitcop_llava.prune(model, METHODS[name]):
        cache = model(**given).past_key_values
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)
        assert _hooks(model) == before + 8 * is_packed
        del cache
        assert _hooks(model) == before


@pytest.mark.parametrize(("name", "hooks"), [("ViTCoP", 8), ("VisionZip", 0)])
def test_layers_of_a_padded_batch_have_hooks_where_they_differ(
    model: Any, batch: dict[str, Any], name: str, hooks: int
) -> None:
    before, more = _hooks(model), torch.full((3, 1), 7)
    with vitcop_llava.prune(model, METHODS[name]):
        cache = model(**batch).past_key_values
        mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], dim=1)
        model(input_ids=more, attention_mask=mask, past_key_values=cache)
        assert _hooks(model) == before + hooks
        del cache
        assert _hooks(model) == before


def test_without_a_mask_as_well(ways: Ways, model: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        cache = model(**given).past_key_values
        found = [model(input_ids=torch.tensor([[word]]), past_key_values=cache).logits[:, -1] for word in WORDS]
        assert ways.taken == [True] * 6
        ways.is_off = True
        assert all(map(torch.equal, found, run(model, given)[1:]))


def test_generated_tokens_open_no_call(ways: Ways, model: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        found = model.generate(**given, max_new_tokens=8, do_sample=False)
        assert ways.taken == [True] * 7
        ways.is_off = True
        assert torch.equal(found, model.generate(**given, max_new_tokens=8, do_sample=False))


def _deep(model: Any, cache: DynamicCache) -> DynamicCache:
    return copy.deepcopy(cache)


def _layer_by_layer(model: Any, cache: DynamicCache) -> DynamicCache:
    made = DynamicCache()
    made.layers = [copy.deepcopy(layer) for layer in cache.layers]
    return made


def _one_layer(number: int, model: Any, cache: DynamicCache) -> DynamicCache:
    cache.layers[number] = copy.deepcopy(cache.layers[number])
    return cache


def _rows(model: Any, cache: DynamicCache) -> DynamicCache:
    cache.batch_repeat_interleave(3)
    cache.reorder_cache(torch.LongTensor([2, 0, 1]))
    cache.batch_select_indices(torch.tensor([0, 2]))
    return cache


CHANGES: dict[str, tuple[Change, bool]] = {
    "deep copy": (_deep, True),
    "copies of layers": (_layer_by_layer, False),
    **{f"copy of layer {number}": (partial(_one_layer, number), False) for number in (0, 3, -1)},
    "rows": (_rows, True),
}
"""What happens to a cache, and whether the next token opens no call still."""


@pytest.mark.parametrize("name", CHANGES)
def test_cache_that_changes_on_the_way(ways: Ways, model: Any, given: dict[str, Any], name: str) -> None:
    change, stays = CHANGES[name]
    taken = [True, True, True, stays, True, True]
    check(ways, model, METHODS["ViTCoP"], given, taken, changes={3: change})


def test_tokens_that_are_taken_back(ways: Ways, model: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        cache = model(**given).past_key_values
        found = []
        for word in WORDS:
            for other in (word, 3):
                found.append(model(input_ids=torch.tensor([[other]]), past_key_values=cache).logits)
            cache.crop(-1)
        assert all(ways.taken)
        ways.is_off = True
        assert all(map(torch.equal, (each[:, -1] for each in found[::2]), run(model, given)[1:]))


def test_mask_that_hides_a_word_from_some_token_on(ways: Ways, model: Any, given: dict[str, Any]) -> None:
    words, wanted = torch.tensor([WORDS]), []
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        for is_off in (False, True):
            ways.is_off = is_off
            cache, mask = model(**given).past_key_values, given["attention_mask"]
            for number in range(words.shape[1]):
                mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
                if number == 3:
                    mask[:, -3] = 0
                output = model(input_ids=words[:, number, None], attention_mask=mask, past_key_values=cache)
                wanted.append(output.logits)
    assert all(ways.taken[:6])
    assert all(map(torch.equal, wanted[:6], wanted[6:]))
    assert not torch.equal(wanted[3][:, -1], run(model, given)[4])


def test_backend_that_changes_between_tokens(ways: Ways, deep: Any, given: dict[str, Any]) -> None:
    language, how = deep.model.language_model, ["sdpa", "eager", "sdpa"]
    found = []
    with vitcop_llava.prune(deep, METHODS["ViTCoP"]):
        for is_off in (False, True):
            ways.is_off = is_off
            cache = deep(**given).past_key_values
            for number, word in enumerate(WORDS):
                language.config._attn_implementation = how[number // 2]
                found.append(deep(input_ids=torch.tensor([[word]]), past_key_values=cache).logits)
    assert all(ways.taken[:6])
    assert all(map(torch.equal, found[:6], found[6:]))


def test_turns_of_text_and_of_an_image_between_tokens(
    ways: Ways, model: Any, given: dict[str, Any], prompt: Make, pictures: Make
) -> None:
    word, found = torch.tensor([[7]]), []
    more: list[dict[str, Any]] = [
        {"input_ids": prompt(4, seed=1)},
        {"input_ids": prompt(2, "image", 4, seed=2), "pixel_values": pictures(seed=1)},
        {"input_ids": prompt(3, seed=3)},
    ]
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        for is_off in (False, True):
            ways.is_off = is_off
            cache = model(**given).past_key_values
            for turn in more:
                found += [model(input_ids=word, past_key_values=cache).logits for _ in range(3)]
                found.append(model(**turn, past_key_values=cache).logits)
    assert ways.taken[:12] == [True, True, True, False] * 3
    half = len(found) // 2
    assert all(map(torch.equal, found[:half], found[half:]))


def test_cache_is_closed_when_a_token_fails(ways: Ways, deep: Any, given: dict[str, Any]) -> None:
    word = torch.tensor([[7]])

    def fail(*_: Any) -> None:
        raise KeyError("a layer")

    with vitcop_llava.prune(deep, METHODS["ViTCoP"]):
        cache = deep(**given).past_key_values
        for _ in range(2):
            deep(input_ids=word, past_key_values=cache)
        handle = deep.model.language_model.layers[-1].register_forward_hook(fail)
        with pytest.raises(KeyError, match="a layer"):
            deep(input_ids=word, past_key_values=cache)
        handle.remove()
    assert ways.taken[-1]
    assert not cache.layers[0].state.is_open
    with pytest.raises(ValueError, match="past_key_values must be continued by a model that is pruned"):
        deep(input_ids=word, past_key_values=cache)


@pytest.mark.parametrize("columns", [-1, 1])
def test_masks_of_another_length_are_refused(ways: Ways, model: Any, given: dict[str, Any], columns: int) -> None:
    word = torch.tensor([[7]])
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        cache = model(**given).past_key_values
        for _ in range(2):
            model(input_ids=word, past_key_values=cache)
        wrong = torch.ones(1, cache.get_seq_length() + 1 + columns, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"attention_mask must cover \d+ tokens"):
            model(input_ids=word, past_key_values=cache, attention_mask=wrong)
    assert ways.taken == [True, True, False]


def _compile_layers(model: Any) -> None:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")


def _compile_language_model(model: Any) -> None:
    model.model.language_model.compile(backend="eager")


COMPILED = {
    "layers": _compile_layers,
    "one layer": lambda model: model.model.language_model.layers[-1].compile(backend="eager"),
    "language model": _compile_language_model,
}


@pytest.mark.parametrize("what", COMPILED)
@pytest.mark.parametrize("name", ["ViTCoP", "ViTCoP padded", "PyramidDrop"])
def test_layers_that_are_compiled_between_tokens(
    own: Any, given: dict[str, Any], prompt: Make, pictures: Make, pad: Any, name: str, what: str
) -> None:
    """Hooks are on for the cache's sake, or are not; code that was compiled then has to do for every later call."""
    rows = [prompt("image", 3, "image", 4), prompt(3, "image", 8)]
    padded = {**pad(rows), "pixel_values": pictures(3)}
    alike = {name: torch.cat([value, value]) for name, value in given.items()}
    first = padded if name == "ViTCoP padded" else alike
    packs, keeps = PyramidDrop(retained_tokens=60, layers=(1, 2)), ViTCoP(retained_tokens=48, layers=(1, 2))

    def run_twice(before: Change) -> list[Tensor]:
        return [*run(own, first, {2: before}), *run(own, padded), *run(own, alike)]

    def compile_now(model: Any, cache: DynamicCache) -> DynamicCache:
        COMPILED[what](model)
        return cache

    with vitcop_llava.prune(own, packs if name == "PyramidDrop" else keeps):
        wanted = run_twice(lambda model, cache: cache)
        found = run_twice(compile_now)
    torch._dynamo.reset()
    for token, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(token, other)


def test_layers_that_are_compiled_while_a_static_cache_lives(own: Any, given: dict[str, Any]) -> None:
    word, found = torch.tensor([[7]]), list[Tensor]()
    with vitcop_llava.prune(own, ViTCoP(retained_tokens=48, layers=(1, 2))):
        for _ in range(2):
            cache, _ = filled(own, given)
            found += [own(input_ids=word, past_key_values=cache).logits for _ in range(2)]
            if len(found) == 2:
                _compile_layers(own)
            found += [own(**given).logits, own(input_ids=word, past_key_values=cache).logits]
    torch._dynamo.reset()
    for token, other in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(token, other)


def test_layers_copied_one_by_one_go_on_beside_their_cache(model: Any, given: dict[str, Any]) -> None:
    word, beside = torch.tensor([[7]]), list[Tensor]()
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        cache = model(**given).past_key_values
        model(input_ids=word, past_key_values=cache)
        other = DynamicCache()
        other.layers = [copy.copy(layer) for layer in cache.layers]

        def ask(*_: Any) -> None:
            handle.remove()
            beside.append(model(input_ids=word, past_key_values=other).logits)

        handle = model.model.language_model.layers[3].register_forward_pre_hook(ask)
        found = model(input_ids=word, past_key_values=cache).logits
    assert torch.equal(found, beside[0])


def test_report_of_a_block_that_only_continues_a_cache(model: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        caches = [model(**given).past_key_values, filled(model, given)[0]]
    for cache in caches:
        with vitcop_llava.prune(model, METHODS["ViTCoP"]) as pruner:
            assert "nothing has run yet" in str(pruner.report)
            for _ in range(2):
                model(input_ids=torch.tensor([[7]]), past_key_values=cache)
                assert "a text-only prompt" in str(pruner.report)


def test_cache_forgets_the_blocks_that_it_went_through(model: Any, batch: dict[str, Any]) -> None:
    before, more = len(finalize._registry), torch.full((3, 1), 7)  # type: ignore[attr-defined]
    cache, mask = None, batch["attention_mask"]
    for _ in range(3):
        with vitcop_llava.prune(model, METHODS["ViTCoP"]):
            cache = model(**batch).past_key_values if cache is None else cache
            mask = torch.cat([mask, torch.ones_like(more)], dim=1)
            model(input_ids=more, attention_mask=mask, past_key_values=cache)
    assert len(finalize._registry) == before  # type: ignore[attr-defined]


def test_windows_are_looked_at_for_every_token(ways: Ways, build: Callable[..., Any], given: dict[str, Any]) -> None:
    model, length = copy.deepcopy(build("mistral")), given["input_ids"].shape[1]
    model.model.language_model.config.sliding_window = length + 2
    word = torch.tensor([[7]])
    with vitcop_llava.prune(model, METHODS["ViTCoP"]):
        cache = model(**given).past_key_values
        for _ in range(2):
            model(input_ids=word, past_key_values=cache)
        with pytest.raises(ValueError, match=f"input_ids must be at most {length + 2} tokens in all"):
            model(input_ids=word, past_key_values=cache)
