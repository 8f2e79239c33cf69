"""Replayed tokens: recorded on a tape, which stands for a CUDA graph on a CPU, they are the tokens that run."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from qwen_small import SQUARE, WIDE_ONE
from qwen_small import build as build_qwen
from qwen_small import given as qwen_inputs
from tape import Tape, taped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CompileConfig, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_llava.hooks.step_capture import without_graphs

Make = Callable[..., Tensor]
CUTS = ViTCoP(ratios=(0.5, 0.25, 0.1), layers=(2, 4), cutoff_distance=3.0)
METHODS = [
    CUTS,
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
    VisPruner(retained_tokens=24),
]
TOKENS = 8
STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True, "max_new_tokens": TOKENS}
RECORDED_AT = 2
"""The token of a cache that is recorded; the prefill gives the first, and one runs as it is."""
ROOM = 240

pytestmark = pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")


@pytest.fixture
def tape() -> Iterator[type[Tape]]:
    with taped() as made:
        yield made


@pytest.fixture
def own(model: Any) -> Any:
    return copy.deepcopy(model)


@pytest.fixture
def given(prompt: Make, pictures: Make) -> dict[str, Any]:
    ids = prompt(3, "image", 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}


@pytest.fixture
def batch(prompt: Make, pictures: Make, pad: Any) -> dict[str, Any]:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    return {**pad(rows), "pixel_values": pictures(3)}


def filled(model: Any, given: dict[str, Any]) -> tuple[StaticCache, Tensor]:
    """A static cache with a prompt, and the token after it."""
    cache = StaticCache(config=model.config.text_config, max_cache_len=ROOM)
    return cache, model(**given, past_key_values=cache).logits[:, -1:].argmax(-1)


def step(model: Any, cache: Any, token: Tensor, **more: Any) -> Tensor:
    logits: Tensor = model(input_ids=token, past_key_values=cache, **more).logits
    return logits


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generates_the_same(
    tape: type[Tape], own: Any, batch: dict[str, Any], method: Any, more: dict[str, Any]
) -> None:
    with vitcop_llava.prune(own, method):
        wanted = own.generate(**batch, **more, max_new_tokens=TOKENS)
    with vitcop_llava.prune(own, method, capture=True) as pruner:
        for number in (1, 2):
            assert torch.equal(own.generate(**batch, **more, **STATIC), wanted)
            assert pruner.uncaptured_token is None
            assert tape.made == number
            assert tape.replays == number * (TOKENS - RECORDED_AT)


@pytest.mark.parametrize("kind", ["gemma", "mistral", "qwen2", "qwen3"])
def test_generates_the_same_with_other_decoders(
    tape: type[Tape], build: Callable[..., Any], given: dict[str, Any], kind: str
) -> None:
    model = build(kind, "sdpa")
    with vitcop_llava.prune(model, CUTS):
        wanted = model.generate(**given, max_new_tokens=TOKENS)
    with vitcop_llava.prune(model, CUTS, capture=True) as pruner:
        assert torch.equal(model.generate(**given, **STATIC), wanted)
        assert pruner.uncaptured_token is None
    assert tape.replays == TOKENS - RECORDED_AT


def test_generates_the_same_from_tiles(tape: type[Tape], next_model: Any, next_inputs: Any) -> None:
    inputs = next_inputs([[2, (131, 77), 3], [4], [(48, 96), 2, (96, 96), 1]])
    with vitcop_llava.prune(next_model, CUTS):
        wanted = next_model.generate(**inputs, max_new_tokens=TOKENS)
    with vitcop_llava.prune(next_model, CUTS, capture=True) as pruner:
        assert torch.equal(next_model.generate(**inputs, **STATIC), wanted)
        assert pruner.uncaptured_token is None
    assert tape.replays == TOKENS - RECORDED_AT


@pytest.mark.parametrize("family", ["qwen2", "qwen2.5", "qwen3"])
def test_generates_the_same_with_positions_of_several_axes(tape: type[Tape], family: str) -> None:
    model, inputs = build_qwen(family), qwen_inputs([[3, WIDE_ONE, 5], [9]], family)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4)):
        wanted = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4), capture=True) as pruner:
        assert torch.equal(model.generate(**inputs, **STATIC, do_sample=False), wanted)
        assert pruner.uncaptured_token is None
        assert tape.replays == TOKENS - RECORDED_AT
        cache = StaticCache(config=model.config.text_config, max_cache_len=ROOM)
        with torch.no_grad():
            model(**inputs, past_key_values=cache)
            model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)
        assert "position_ids are missing" in str(pruner.uncaptured_token)


def test_beams_of_such_positions(tape: type[Tape]) -> None:
    model, inputs = build_qwen("qwen2.5"), qwen_inputs([[3, WIDE_ONE, 5]], "qwen2.5")
    more = {"num_beams": 2, "do_sample": False}
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4)):
        wanted = model.generate(**inputs, **more, max_new_tokens=TOKENS)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4), capture=True) as pruner:
        assert torch.equal(model.generate(**inputs, **more, **STATIC), wanted)
        assert pruner.uncaptured_token is None
    assert tape.replays == TOKENS - RECORDED_AT


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


def test_compiled_tokens_are_replayed_too(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    torch.compiler.reset()
    config: Any = CompileConfig(backend="aot_eager", fullgraph=True)
    config._compile_all_devices = True  # transformers compiles by itself on GPUs alone
    how = {"cache_implementation": "static", "max_new_tokens": TOKENS, "compile_config": config}
    with vitcop_llava.prune(own, CUTS):
        wanted = own.generate(**given, max_new_tokens=TOKENS)
    with vitcop_llava.prune(own, CUTS, capture=True) as pruner:
        for number in (1, 2):
            assert torch.equal(own.generate(**given, **how), wanted)
            assert pruner.uncaptured_token is None
            assert tape.replays == number * (TOKENS - RECORDED_AT - 1)  # two of them ran
    torch.compiler.reset()


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


def test_two_turns(tape: type[Tape], own: Any, given: dict[str, Any], prompt: Make) -> None:
    with vitcop_llava.prune(own, CUTS):
        cache, token = filled(own, given)
        wanted = [step(own, cache, token) for _ in range(5)]
        wanted += [step(own, cache, prompt(3)), *(step(own, cache, token) for _ in range(5))]
    with vitcop_llava.prune(own, CUTS, capture=True):
        cache, _ = filled(own, given)
        found = [step(own, cache, token) for _ in range(5)]
        found += [step(own, cache, prompt(3)), *(step(own, cache, token) for _ in range(5))]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert tape.replays == 4 + 5


def test_a_second_image(tape: type[Tape], own: Any, given: dict[str, Any], prompt: Make, pictures: Make) -> None:
    """The layers lose more, and the second turn's tokens are recorded anew."""
    more = {"input_ids": prompt(2, "image", 3, seed=1), "pixel_values": pictures(1, seed=3)}
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(own, CUTS, capture=capture):
            cache = StaticCache(config=own.config.text_config, max_cache_len=2 * ROOM)
            token = own(**given, past_key_values=cache).logits[:, -1:].argmax(-1)
            logits = [step(own, cache, token) for _ in range(4)]
            logits.append(own(**more, past_key_values=cache).logits)
            found[capture] = [*logits, *(step(own, cache, token) for _ in range(4))]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert (tape.made, tape.replays) == (2, 3 + 4)


def test_rows_change_places(tape: type[Tape], own: Any, batch: dict[str, Any]) -> None:
    """What the layers' slots stand for changes with the rows, in the memory that a recording reads."""
    order: Any = torch.tensor([2, 0, 1])
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(own, CUTS, capture=capture):
            cache = StaticCache(config=own.config.text_config, max_cache_len=2 * ROOM)
            mask, logits = batch["attention_mask"], list[Tensor]()
            token = own(**batch, past_key_values=cache).logits[:, -1:].argmax(-1)
            whole = torch.nn.functional.pad(mask, (0, 2 * ROOM - mask.shape[1]), value=1)
            places = mask.sum(1, keepdim=True)
            for _ in range(8):
                logits.append(step(own, cache, token, attention_mask=whole, position_ids=places))
                cache.reorder_cache(order)
                token, whole, places = token[order], whole[order], places[order] + 1
            found[capture] = logits
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert tape.made == 1


def test_caches_take_turns(tape: type[Tape], own: Any, given: dict[str, Any], pictures: Make) -> None:
    other = {**given, "pixel_values": pictures(1, seed=5)}
    with vitcop_llava.prune(own, CUTS):
        (one, token), (two, _) = filled(own, given), filled(own, other)
        wanted = [step(own, cache, token) for _ in range(5) for cache in (one, two)]
    with vitcop_llava.prune(own, CUTS, capture=True):
        (one, _), (two, _) = filled(own, given), filled(own, other)
        found = [step(own, cache, token) for _ in range(5) for cache in (one, two)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert tape.replays == 2 * 4
    assert not torch.equal(found[-1], found[-2])


def test_a_copy_and_a_reset_cache_go_their_own_way(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(own, CUTS, capture=True):
        cache, token = filled(own, given)
        first = [step(own, cache, token) for _ in range(4)]
        kept = copy.deepcopy(cache)
        wanted = step(own, cache, token)
        assert torch.equal(step(own, kept, token), wanted)
        cache.reset()
        own(**given, past_key_values=cache)
        torch.testing.assert_close([step(own, cache, token) for _ in range(4)], first, rtol=0, atol=0)
        assert torch.equal(step(own, cache, token), wanted)
    assert tape.made == 2


def test_what_a_caller_holds_stays(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(own, CUTS, capture=True):
        cache, token = filled(own, given)
        held = [step(own, cache, (token + number) % 90) for number in range(5)]
        copies = [each.clone() for each in held]
        for _ in range(3):
            step(own, cache, token)
    assert all(torch.equal(one, other) for one, other in zip(held, copies, strict=True))
    assert tape.replays == 7


def test_a_full_cache_says_so(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    room = given["input_ids"].shape[1] + 4
    with vitcop_llava.prune(own, CUTS, capture=True):
        cache = StaticCache(config=own.config.text_config, max_cache_len=room)
        token = own(**given, past_key_values=cache).logits[:, -1:].argmax(-1)
        for _ in range(4):
            step(own, cache, token)
        assert tape.replays == 3
        with pytest.raises(ValueError, match=r"past_key_values must have room"):
            step(own, cache, token)


def quantized(module: nn.Module) -> nn.Module:
    import torchao.quantization as quantization  # type: ignore[import-untyped]

    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    return module


Change = Callable[[Any], Any]
CHANGES: dict[str, tuple[str | None, Change]] = {}


def change(told: str | None) -> Callable[[Change], Change]:
    """Notes a change under way: what is told of the token after it, None where it is recorded anew at once."""

    def note(changed: Change) -> Change:
        CHANGES[changed.__name__.replace("_", " ")] = (told, contextmanager(changed))
        return changed

    return note


@change("the model has changed")
def a_weight_in_other_memory(model: Any) -> Iterator[None]:
    part = model.model.language_model.layers[3].mlp.up_proj
    before, part.weight = part.weight, nn.Parameter(part.weight * 1.5)
    yield
    part.weight = before


@change(None)
def a_weight_that_moved(model: Any) -> Iterator[None]:
    weight = model.lm_head.weight
    before = weight.data
    weight.data = before * 2
    yield
    weight.data = before


@change(None)
def a_weight_in_place(model: Any) -> Iterator[None]:
    model.lm_head.weight.data.mul_(2)
    yield
    model.lm_head.weight.data.div_(2)


@change("the model has changed")
def another_activation(model: Any) -> Iterator[None]:
    part = model.model.language_model.layers[1].mlp
    before, part.act_fn = part.act_fn, nn.Tanh().eval()
    yield
    part.act_fn = before


@change("the model has changed")
def a_scale(model: Any) -> Iterator[None]:
    attention = model.model.language_model.layers[3].self_attn
    before, attention.scaling = attention.scaling, 3 * attention.scaling
    yield
    attention.scaling = before


@change("the model has changed")
def the_attention_of_one_layer(model: Any) -> Iterator[None]:
    attention = model.model.language_model.layers[3].self_attn
    before, attention.config = attention.config, copy.copy(attention.config)
    attention.config._attn_implementation = "eager"
    yield
    attention.config = before


@change("the model has changed")
def a_norm_of_embeddings(model: Any) -> Iterator[None]:
    model.model.language_model.embed_tokens.norm_type = 1.0  # which is read with max_norm
    yield
    model.model.language_model.embed_tokens.norm_type = 2.0


@change("the model has changed")
def an_epsilon(model: Any) -> Iterator[None]:
    norm = model.model.language_model.norm
    before, norm.variance_epsilon = norm.variance_epsilon, 1.0
    yield
    norm.variance_epsilon = before


@change("the model has changed")
def a_rotation(model: Any) -> Iterator[None]:
    model.model.language_model.rotary_emb.attention_scaling = 2.0
    yield
    model.model.language_model.rotary_emb.attention_scaling = 1.0


@change("the model has changed")
def a_smaller_head_in_the_same_memory(model: Any) -> Iterator[None]:
    before = model.lm_head.weight.data
    model.lm_head.weight.data = before[:50]
    yield
    model.lm_head.weight.data = before


@change("the model has changed")
def a_weight_that_lies_otherwise(model: Any) -> Iterator[None]:
    part = model.model.language_model.layers[2].self_attn.q_proj
    before = part.weight.data
    part.weight.data = before.T
    yield
    part.weight.data = before


@change("the model has changed")
def another_forward_of_a_class(model: Any) -> Iterator[None]:
    kind = type(model.model.language_model.layers[0].mlp)
    before = kind.forward
    kind.forward = lambda self, given: 2 * before(self, given)
    yield
    kind.forward = before


@change("the model has changed")
def another_attention_of_that_name(model: Any) -> Iterator[None]:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *args, **kwargs: (2 * before(*args, **kwargs)[0], None)
    yield
    del ALL_ATTENTION_FUNCTIONS["sdpa"]  # which is of this instance, over the library's own


@change("hooks or modes of torch that see everything are on")
def a_mode_of_functions(model: Any) -> Iterator[None]:
    class Doubles(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            return 2 * found if function is nn.functional.silu else found

    with Doubles():
        yield


@change(None)
def a_default_device(model: Any) -> Iterator[None]:
    with torch.device("cpu"):
        yield


@change("a Linear holds a Int8Tensor")
def quantized_weights(model: Any) -> Iterator[None]:
    layer = model.model.language_model.layers[3]
    before, layer.mlp = layer.mlp, copy.deepcopy(layer.mlp)
    quantized(layer.mlp)
    yield
    layer.mlp = before


@change("a LlamaRMSNorm has hooks")
def a_hook_on_the_last_norm(model: Any) -> Iterator[None]:
    handle = model.model.language_model.norm.register_forward_hook(lambda _, __, output: output * 2)
    yield
    handle.remove()


@change("a LlavaModel has hooks")
def a_hook_on_the_base(model: Any) -> Iterator[None]:
    handle = model.model.register_forward_pre_hook(lambda _, args: args)
    yield
    handle.remove()


@change("a LlamaMLP has hooks")
def a_hook_in_a_layer(model: Any) -> Iterator[None]:
    handle = model.model.language_model.layers[3].mlp.register_forward_hook(lambda _, __, output: output * 2)
    yield
    handle.remove()


@change("the forward of a Linear was replaced or compiled")
def a_forward_of_the_head(model: Any) -> Iterator[None]:
    forward = model.lm_head.forward
    model.lm_head.forward = lambda given: forward(given) * 2
    yield
    del model.lm_head.forward


@change("the forward of a LlavaModel was replaced or compiled")
def a_forward_of_the_base(model: Any) -> Iterator[None]:
    before = model.model.forward
    model.model.forward = lambda **kwargs: before(**kwargs)
    yield
    model.model.forward = before


@change("the model is in training mode")
def training(model: Any) -> Iterator[None]:
    model.train()
    yield
    model.eval()


@change("hidden states or attention maps are asked for")
def hidden_states(model: Any) -> Iterator[None]:
    model.config.text_config.output_hidden_states = True
    yield
    model.config.text_config.output_hidden_states = False


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_changes_under_way(tape: type[Tape], own: Any, given: dict[str, Any], name: str) -> None:
    """Three tokens before it, three while it lasts, three after it; whatever is replayed, what runs is the measure."""
    told, changed = CHANGES[name]
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(own, CUTS, capture=capture) as pruner:
            cache, token = filled(own, given)
            logits = [step(own, cache, token) for _ in range(3)]
            with changed(own):
                logits.append(step(own, cache, token))
                if capture:
                    assert pruner.uncaptured_token == told
                logits += [step(own, cache, token) for _ in range(2)]
            logits += [step(own, cache, token) for _ in range(3)]
            assert int(cache.get_seq_length()) == given["input_ids"].shape[1] + 9
            if capture:
                assert pruner.uncaptured_token is None
        found[capture] = [each.detach() for each in logits]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)


@pytest.mark.parametrize("capture", [False, True], ids=["as it is", "captured"])
@pytest.mark.parametrize("ran", [1, 3], ids=["before it is recorded", "after"])
def test_a_token_that_fails_was_never_there(
    tape: type[Tape], own: Any, given: dict[str, Any], capture: bool, ran: int
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with vitcop_llava.prune(own, CUTS, capture=capture):
        cache, token = filled(own, given)
        wanted = [step(own, cache, token) for _ in range(6)]
        cache, _ = filled(own, given)
        found = [step(own, cache, token) for _ in range(ran)]
        handle = own.model.language_model.layers[3].register_forward_hook(fail)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                step(own, cache, token)
        handle.remove()
        assert int(cache.get_seq_length()) == given["input_ids"].shape[1] + ran
        found += [step(own, cache, token) for _ in range(6 - ran)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_modes_of_inference_are_recorded_apart(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(own, CUTS, capture=capture):
            cache, token = filled(own, given)
            found[capture] = []
            for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
                with mode():
                    found[capture] += [step(own, cache, token) for _ in range(4)]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert tape.made == 3


def test_what_changes_with_every_token_is_given_up(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    norm = own.model.language_model.norm
    norm.calls = 0
    with vitcop_llava.prune(own, CUTS, capture=True) as pruner:
        cache, token = filled(own, given)
        for _ in range(12):
            norm.calls += 1
            step(own, cache, token)
        assert pruner.uncaptured_token == "the model or the cache changes from token to token"
        made = tape.made
        for _ in range(4):
            step(own, cache, token)
        assert tape.made == made == 3


@pytest.mark.parametrize("capture", [False, True], ids=["as it is", "captured"])
def test_a_cache_of_inference_mode_goes_on_outside(
    tape: type[Tape], own: Any, given: dict[str, Any], capture: bool
) -> None:
    order: Any = torch.tensor([0])
    with torch.inference_mode(), vitcop_llava.prune(own, CUTS):
        cache, token = filled(own, given)
        wanted = [step(own, cache, token) for _ in range(6)]
    with vitcop_llava.prune(own, CUTS, capture=capture):
        with torch.inference_mode():
            cache, token = filled(own, given)
            found = [step(own, cache, token) for _ in range(2)]
        with torch.no_grad():
            for _ in range(4):
                cache.reorder_cache(order)
                found.append(step(own, cache, token))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_asked_for_hidden_states_are_given(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(own, CUTS, capture=True) as pruner:
        cache, token = filled(own, given)
        for _ in range(3):
            step(own, cache, token)
        output = own(input_ids=token, past_key_values=cache, output_hidden_states=True)
        assert len(output.hidden_states) == 9
        assert pruner.uncaptured_token == "hidden states or attention maps are asked for"
        assert isinstance(own(input_ids=token, past_key_values=cache, return_dict=False), tuple)
        assert isinstance(own(input_ids=token, past_key_values=cache, return_dict=False), tuple)


def test_positions_and_logits_to_keep_are_part_of_the_form(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    place = torch.tensor([[given["input_ids"].shape[1]]])
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(own, CUTS, capture=capture):
            cache, token = filled(own, given)
            forms: list[dict[str, Any]] = [{}, {"logits_to_keep": 1}, {"position_ids": place + 20}, {"use_cache": True}]
            found[capture] = [step(own, cache, token, **form) for form in forms for _ in range(4)]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert tape.made == len(forms)


def test_nothing_is_kept_of_a_cache_that_is_gone(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    gc.collect()
    gc.disable()
    try:
        with vitcop_llava.prune(own, CUTS, capture=True) as pruner:
            cache, token = filled(own, given)
            for _ in range(4):
                step(own, cache, token)
            assert pruner._tokens is not None
            assert len(pruner._tokens._steps) == 1
            layers: Any = cache.layers
            state = weakref.ref(layers[0].state)
            assert tape.made == 1
            del cache, layers
            assert state() is None
            assert len(pruner._tokens._steps) == 0
    finally:
        gc.enable()


def test_quantized_weights_run_as_they_are(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    quantized(own.model.language_model)
    with vitcop_llava.prune(own, CUTS):
        wanted, prefill = own.generate(**given, max_new_tokens=TOKENS), own(**given).logits
    with vitcop_llava.prune(own, CUTS, capture=True) as pruner:
        assert torch.equal(own.generate(**given, **STATIC), wanted)
        assert pruner.uncaptured_token == "a Linear holds a Int8Tensor"
        assert all(torch.equal(own(**given).logits, prefill) for _ in range(3))
        assert pruner.uncaptured == "a Linear holds a Int8Tensor"
    assert tape.made == 0


def test_recordings_go_with_the_block(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(own, CUTS, capture=True) as pruner:
        for _ in range(3):
            own.generate(**given, **STATIC)
        assert pruner._tokens is not None
        assert len(pruner._tokens._graphs) > 0
    assert len(pruner._tokens._graphs) == 0
    assert pruner.uncaptured_token is None  # it still tells of the last token


def test_nothing_stays_behind(tape: type[Tape], own: Any, given: dict[str, Any]) -> None:
    own.generate(**given, **STATIC)  # which notes things on the model
    before = {name: set(vars(part)) for name, part in own.named_modules()}
    with vitcop_llava.prune(own, CUTS, capture=True):
        own.generate(**given, **STATIC)
        copied = copy.deepcopy(own)
        assert "forward" not in vars(copied)
    assert {name: set(vars(part)) for name, part in own.named_modules()} == before


def test_what_is_not_pruned_and_not_asked_for(own: Any, given: dict[str, Any]) -> None:
    with vitcop_llava.prune(own, CUTS) as pruner:
        assert pruner.uncaptured_token == "prune was not asked to capture; give it capture=True"
    with vitcop_llava.prune(own, ViTCoP(retention_ratio=1), capture=True) as pruner:
        own.generate(**given, **STATIC)
        assert pruner.uncaptured_token == "nothing is pruned, or the model has no head"
    with vitcop_llava.prune(own, CUTS, capture=True) as pruner:
        own.generate(**given, max_new_tokens=4)
        assert pruner.uncaptured_token == "no token has followed in a static cache"
        own.generate(**given, **STATIC)
        assert pruner.uncaptured_token is None  # on a CPU as it is
