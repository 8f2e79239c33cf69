"""Replayed tokens: recorded on a tape, which stands for a CUDA graph on a CPU, they are the tokens that run."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from qwen_small import SQUARE, WIDE_ONE
from qwen_small import build as build_qwen
from qwen_small import given as qwen_inputs
from static_caches import CUTS, METHODS, filled, step
from tape import Tape
from torch import Tensor
from transformers import CompileConfig, StaticCache

import vitcop_llava
from vitcop_llava import VisPruner, ViTCoP
from vitcop_llava.hooks import graphs
from vitcop_llava.hooks.step_capture import without_graphs

Make = Callable[..., Tensor]
TOKENS = 8
STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True, "max_new_tokens": TOKENS}
RECORDED_AT = 2
"""The token of a cache that is recorded; the prefill gives the first, and one runs as it is."""
ROOM = 240

pytestmark = pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")


def answers_alike(tape: type[Tape], model: Any, inputs: dict[str, Any], method: Any = CUTS, **more: Any) -> None:
    """Answers whose tokens are replayed are those of a dynamic cache, twice; each cache has a recording."""
    with vitcop_llava.prune(model, method):
        wanted = model.generate(**inputs, **more, max_new_tokens=TOKENS)
    with vitcop_llava.prune(model, method, capture=True) as pruner:
        for number in (1, 2):
            assert torch.equal(model.generate(**inputs, **more, **STATIC), wanted)
            assert pruner.uncaptured_token is None
            assert tape.made == number
            assert tape.replays == number * (TOKENS - RECORDED_AT)


@pytest.mark.parametrize("method", [*METHODS, VisPruner(retained_tokens=24)], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generates_the_same(
    tape: type[Tape], deep: Any, batch: dict[str, Any], method: Any, more: dict[str, Any]
) -> None:
    answers_alike(tape, deep, batch, method, **more)


@pytest.mark.parametrize("kind", ["gemma", "mistral", "qwen2", "qwen3"])
def test_generates_the_same_with_other_decoders(
    tape: type[Tape], build: Callable[..., Any], given: dict[str, Any], kind: str
) -> None:
    answers_alike(tape, build(kind, "sdpa"), given)


def test_generates_the_same_from_tiles(tape: type[Tape], next_model: Any, next_inputs: Any) -> None:
    answers_alike(tape, next_model, next_inputs([[2, (131, 77), 3], [4], [(48, 96), 2, (96, 96), 1]]))


@pytest.mark.parametrize("family", ["qwen2", "qwen2.5", "qwen3"])
def test_generates_the_same_with_positions_of_several_axes(tape: type[Tape], family: str) -> None:
    inputs = qwen_inputs([[3, WIDE_ONE, 5], [9]], family)
    answers_alike(tape, build_qwen(family), inputs, ViTCoP(retention_ratio=1 / 4), do_sample=False)


def test_beams_of_such_positions(tape: type[Tape]) -> None:
    inputs, method = qwen_inputs([[3, WIDE_ONE, 5]], "qwen2.5"), ViTCoP(retention_ratio=1 / 4)
    answers_alike(tape, build_qwen("qwen2.5"), inputs, method, num_beams=2, do_sample=False)


@pytest.mark.parametrize("family", ["qwen2", "qwen2.5", "qwen3"])
def test_such_positions_have_to_be_given(tape: type[Tape], family: str) -> None:
    model, inputs = build_qwen(family), qwen_inputs([[3, WIDE_ONE, 5], [9]], family)
    with torch.no_grad(), vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4), capture=True) as pruner:
        cache = StaticCache(config=model.config.text_config, max_cache_len=ROOM)
        model(**inputs, past_key_values=cache)
        model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)
        assert "position_ids are missing" in str(pruner.uncaptured_token)


def test_what_the_model_holds_is_given_as_it_is_now(tape: type[Tape]) -> None:
    """Qwen-VL may give what it counts positions from, and that is its last prompt's, whichever cache goes on."""
    model, (one, other) = build_qwen("qwen2.5"), (qwen_inputs([[3, each, 5]], "qwen2.5") for each in (WIDE_ONE, SQUARE))
    with torch.no_grad(), vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 3), capture=True) as pruner:
        cache = StaticCache(config=model.config.text_config, max_cache_len=ROOM)
        model(**one, past_key_values=cache)
        more = {"input_ids": one["input_ids"][:, :1], "position_ids": torch.full((3, 1, 1), 30)}
        # As versions of transformers hand it on that do not cut it to the token.
        kinds = [torch.zeros((1, 40 + number), dtype=torch.int32) for number in range(4)]
        for each in kinds:
            model(**more, mm_token_type_ids=each, past_key_values=cache)
        assert pruner.uncaptured_token is None
        model(**other)
        now = model.model.rope_deltas
        output = model(**more, mm_token_type_ids=kinds[0], past_key_values=cache)
        assert getattr(output, "rope_deltas", now) is now  # later versions do not give it
        assert pruner.uncaptured_token is None
    assert tape.replays == 4


def test_what_mixes_experts_waits_and_runs_as_it_is(tape: type[Tape]) -> None:
    model, inputs = build_qwen("qwen3-moe"), qwen_inputs([[3, WIDE_ONE, 5]], "qwen3-moe")
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4)):
        wanted = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4), capture=True) as pruner:
        assert torch.equal(model.generate(**inputs, **STATIC, do_sample=False), wanted)
        if tape.replays == 0:  # as this version of transformers calls its experts
            assert "it cannot be recorded: operation not permitted" in str(pruner.uncaptured_token)


@pytest.fixture
def compiled() -> Iterator[dict[str, Any]]:
    """How `generate` compiles tokens here."""
    config: Any = CompileConfig(backend="aot_eager", fullgraph=True, mode=None)  # type: ignore[arg-type]
    config._compile_all_devices = True  # transformers compiles by itself on GPUs alone
    torch.compiler.reset()
    yield {"cache_implementation": "static", "max_new_tokens": TOKENS, "compile_config": config}
    torch.compiler.reset()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiled_tokens_are_replayed_too(
    tape: type[Tape], deep: Any, given: dict[str, Any], compiled: dict[str, Any], mode: Callable[[], Any]
) -> None:
    with vitcop_llava.prune(deep, CUTS):
        wanted = deep.generate(**given, max_new_tokens=TOKENS)
    with mode(), vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
        for number in (1, 2):
            assert torch.equal(deep.generate(**given, **compiled), wanted)
            assert pruner.uncaptured_token is None
            assert tape.replays == number * (TOKENS - RECORDED_AT - 1)  # two of them ran


def test_where_no_compiled_token_can_be_recorded_the_code_is_what_was_asked_for(
    tape: type[Tape], deep: Any, given: dict[str, Any], compiled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()

    def get_compiled_call(model: Any, config: Any) -> Callable[..., Any]:
        asked.append(config)
        return model.__call__  # type: ignore[no-any-return]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(graphs, "Graph", refuse)
    monkeypatch.setattr(type(deep), "get_compiled_call", get_compiled_call)
    own = compiled["compile_config"]
    with vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
        for warm in (2, 2):
            asked.clear()
            deep.generate(**given, **compiled)
            assert str(pruner.uncaptured_token) == "it cannot be recorded: operation not permitted"
            assert [each is own for each in asked] == [False] * warm + [True] * (TOKENS - 1 - warm)


def test_a_mode_that_records_is_compiled_without_its_graphs() -> None:
    for mode, wanted in (
        ("reduce-overhead", "default"),
        ("max-autotune", "max-autotune-no-cudagraphs"),
        ("default", "default"),
    ):
        config = CompileConfig(mode=mode, fullgraph=True)
        found = without_graphs(config)
        assert (found.mode, found.fullgraph, config.mode) == (wanted, True, mode)
    config = CompileConfig(mode=None, options={"coordinate_descent_tuning": True})  # type: ignore[arg-type]
    assert without_graphs(config).options == {"coordinate_descent_tuning": True, "triton.cudagraphs": False}
    assert config.options == {"coordinate_descent_tuning": True}


def test_two_turns(tape: type[Tape], deep: Any, given: dict[str, Any], prompt: Make) -> None:
    with vitcop_llava.prune(deep, CUTS):
        cache, token = filled(deep, given)
        wanted = [step(deep, cache, token) for _ in range(5)]
        wanted += [step(deep, cache, prompt(3)), *(step(deep, cache, token) for _ in range(5))]
    with vitcop_llava.prune(deep, CUTS, capture=True):
        cache, _ = filled(deep, given)
        found = [step(deep, cache, token) for _ in range(5)]
        found += [step(deep, cache, prompt(3)), *(step(deep, cache, token) for _ in range(5))]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert tape.replays == 4 + 5


def test_a_second_image(tape: type[Tape], deep: Any, given: dict[str, Any], prompt: Make, pictures: Make) -> None:
    """The layers lose more, and the second turn's tokens are recorded anew."""
    more = {"input_ids": prompt(2, "image", 3, seed=1), "pixel_values": pictures(1, seed=3)}
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(deep, CUTS, capture=capture):
            cache = StaticCache(config=deep.config.text_config, max_cache_len=2 * ROOM)
            token = deep(**given, past_key_values=cache).logits[:, -1:].argmax(-1)
            logits = [step(deep, cache, token) for _ in range(4)]
            logits.append(deep(**more, past_key_values=cache).logits)
            found[capture] = [*logits, *(step(deep, cache, token) for _ in range(4))]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert (tape.made, tape.replays) == (2, 3 + 4)


def test_rows_change_places(tape: type[Tape], deep: Any, batch: dict[str, Any]) -> None:
    """What the layers' slots stand for changes with the rows, in the memory that a recording reads."""
    order: Any = torch.tensor([2, 0, 1])
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(deep, CUTS, capture=capture):
            cache = StaticCache(config=deep.config.text_config, max_cache_len=2 * ROOM)
            mask, logits = batch["attention_mask"], list[Tensor]()
            token = deep(**batch, past_key_values=cache).logits[:, -1:].argmax(-1)
            whole = torch.nn.functional.pad(mask, (0, 2 * ROOM - mask.shape[1]), value=1)
            places = mask.sum(1, keepdim=True)
            for _ in range(8):
                logits.append(step(deep, cache, token, attention_mask=whole, position_ids=places))
                cache.reorder_cache(order)
                token, whole, places = token[order], whole[order], places[order] + 1
            found[capture] = logits
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert tape.made == 1


def test_caches_take_turns(tape: type[Tape], deep: Any, given: dict[str, Any], pictures: Make) -> None:
    other = {**given, "pixel_values": pictures(1, seed=5)}
    with vitcop_llava.prune(deep, CUTS):
        (one, token), (two, _) = filled(deep, given), filled(deep, other)
        wanted = [step(deep, cache, token) for _ in range(5) for cache in (one, two)]
    with vitcop_llava.prune(deep, CUTS, capture=True):
        (one, _), (two, _) = filled(deep, given), filled(deep, other)
        found = [step(deep, cache, token) for _ in range(5) for cache in (one, two)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert tape.replays == 2 * 4
    assert not torch.equal(found[-1], found[-2])


def test_a_copy_and_a_reset_cache_go_their_own_way(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(deep, CUTS, capture=True):
        cache, token = filled(deep, given)
        first = [step(deep, cache, token) for _ in range(4)]
        kept = copy.deepcopy(cache)
        wanted = step(deep, cache, token)
        assert torch.equal(step(deep, kept, token), wanted)
        cache.reset()
        deep(**given, past_key_values=cache)
        torch.testing.assert_close([step(deep, cache, token) for _ in range(4)], first, rtol=0, atol=0)
        assert torch.equal(step(deep, cache, token), wanted)
    assert tape.made == 2


def test_what_a_caller_holds_stays(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(deep, CUTS, capture=True):
        cache, token = filled(deep, given)
        held = [step(deep, cache, (token + number) % 90) for number in range(5)]
        copies = [each.clone() for each in held]
        for _ in range(3):
            step(deep, cache, token)
    assert all(torch.equal(one, other) for one, other in zip(held, copies, strict=True))
    assert tape.replays == 7


def test_a_full_cache_says_so(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    room = given["input_ids"].shape[1] + 4
    with vitcop_llava.prune(deep, CUTS, capture=True):
        cache = StaticCache(config=deep.config.text_config, max_cache_len=room)
        token = deep(**given, past_key_values=cache).logits[:, -1:].argmax(-1)
        for _ in range(4):
            step(deep, cache, token)
        assert tape.replays == 3
        with pytest.raises(ValueError, match=r"past_key_values must have room"):
            step(deep, cache, token)


@pytest.mark.parametrize("capture", [False, True], ids=["as it is", "captured"])
@pytest.mark.parametrize("ran", [1, 3], ids=["before it is recorded", "after"])
def test_a_token_that_fails_was_never_there(
    tape: type[Tape], deep: Any, given: dict[str, Any], capture: bool, ran: int
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with vitcop_llava.prune(deep, CUTS, capture=capture):
        cache, token = filled(deep, given)
        wanted = [step(deep, cache, token) for _ in range(6)]
        cache, _ = filled(deep, given)
        found = [step(deep, cache, token) for _ in range(ran)]
        handle = deep.model.language_model.layers[3].register_forward_hook(fail)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                step(deep, cache, token)
        handle.remove()
        assert int(cache.get_seq_length()) == given["input_ids"].shape[1] + ran
        found += [step(deep, cache, token) for _ in range(6 - ran)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_modes_of_inference_are_recorded_apart(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(deep, CUTS, capture=capture):
            cache, token = filled(deep, given)
            found[capture] = []
            for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
                with mode():
                    found[capture] += [step(deep, cache, token) for _ in range(4)]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert tape.made == 3


@pytest.mark.parametrize("capture", [False, True], ids=["as it is", "captured"])
def test_a_cache_of_inference_mode_goes_on_outside(
    tape: type[Tape], deep: Any, given: dict[str, Any], capture: bool
) -> None:
    order: Any = torch.tensor([0])
    with torch.inference_mode(), vitcop_llava.prune(deep, CUTS):
        cache, token = filled(deep, given)
        wanted = [step(deep, cache, token) for _ in range(6)]
    with vitcop_llava.prune(deep, CUTS, capture=capture):
        with torch.inference_mode():
            cache, token = filled(deep, given)
            found = [step(deep, cache, token) for _ in range(2)]
        with torch.no_grad():
            for _ in range(4):
                cache.reorder_cache(order)
                found.append(step(deep, cache, token))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_asked_for_hidden_states_are_given(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
        cache, token = filled(deep, given)
        for _ in range(3):
            step(deep, cache, token)
        output = deep(input_ids=token, past_key_values=cache, output_hidden_states=True)
        assert len(output.hidden_states) == 9
        assert pruner.uncaptured_token == "hidden states or attention maps are asked for"
        assert isinstance(deep(input_ids=token, past_key_values=cache, return_dict=False), tuple)
        assert isinstance(deep(input_ids=token, past_key_values=cache, return_dict=False), tuple)


def test_positions_and_logits_to_keep_are_part_of_the_form(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    place = torch.tensor([[given["input_ids"].shape[1]]])
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(deep, CUTS, capture=capture):
            cache, token = filled(deep, given)
            forms: list[dict[str, Any]] = [{}, {"logits_to_keep": 1}, {"position_ids": place + 20}, {"use_cache": True}]
            found[capture] = [step(deep, cache, token, **form) for form in forms for _ in range(4)]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert tape.made == len(forms)


def test_nothing_is_kept_of_a_cache_that_is_gone(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    gc.collect()
    gc.disable()
    try:
        with vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
            cache, token = filled(deep, given)
            for _ in range(4):
                step(deep, cache, token)
            assert pruner._tokens is not None
            assert len(pruner._tokens._histories) == 1
            layers: Any = cache.layers
            state = weakref.ref(layers[0].state)
            assert tape.made == 1
            del cache, layers
            assert state() is None
            assert len(pruner._tokens._histories) == 0
    finally:
        gc.enable()


def test_recordings_go_with_the_block(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
        for _ in range(3):
            deep.generate(**given, **STATIC)
        assert pruner._tokens is not None
        assert len(pruner._tokens._graphs) > 0
    assert len(pruner._tokens._graphs) == 0
    assert pruner.uncaptured_token is None  # it still tells of the last token


def test_nothing_stays_behind(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    deep.generate(**given, **STATIC)  # which notes things on the model
    before = {name: set(vars(part)) for name, part in deep.named_modules()}
    with vitcop_llava.prune(deep, CUTS, capture=True):
        deep.generate(**given, **STATIC)
        copied = copy.deepcopy(deep)
        assert "forward" not in vars(copied)
    assert {name: set(vars(part)) for name, part in deep.named_modules()} == before


def test_what_is_not_pruned_and_not_asked_for(deep: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(deep, CUTS) as pruner:
        assert pruner.uncaptured_token == "prune was not asked to capture; give it capture=True"
    with vitcop_llava.prune(deep, ViTCoP(retention_ratio=1), capture=True) as pruner:
        deep.generate(**given, **STATIC)
        assert pruner.uncaptured_token == "nothing is pruned, or the model has no head"
    with vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
        deep.generate(**given, max_new_tokens=4)
        assert pruner.uncaptured_token == "no token has followed in a static cache"
        deep.generate(**given, **STATIC)
        assert pruner.uncaptured_token is None  # on a CPU as it is
