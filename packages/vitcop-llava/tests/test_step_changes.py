"""A model that changes while its tokens are replayed: what runs is the measure, and the reason is told."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from static_caches import CUTS, filled, step
from tape import Tape
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vitcop_llava

STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}

pytestmark = pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")


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
def test_a_model_that_changes_under_way(tape: type[Tape], deep: Any, given: dict[str, Any], name: str) -> None:
    """Three tokens before it, three while it lasts, three after it; whatever is replayed, what runs is the measure."""
    told, changed = CHANGES[name]
    found = dict[bool, list[Tensor]]()
    for capture in (False, True):
        with vitcop_llava.prune(deep, CUTS, capture=capture) as pruner:
            cache, token = filled(deep, given)
            logits = [step(deep, cache, token) for _ in range(3)]
            with changed(deep):
                logits.append(step(deep, cache, token))
                if capture:
                    assert pruner.uncaptured_token == told
                logits += [step(deep, cache, token) for _ in range(2)]
            logits += [step(deep, cache, token) for _ in range(3)]
            assert int(cache.get_seq_length()) == given["input_ids"].shape[1] + 9
            if capture:
                assert pruner.uncaptured_token is None
        found[capture] = [each.detach() for each in logits]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)


def test_what_changes_with_every_token_is_given_up(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    norm = deep.model.language_model.norm
    norm.calls = 0
    with vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
        cache, token = filled(deep, given)
        for _ in range(12):
            norm.calls += 1
            step(deep, cache, token)
        assert pruner.uncaptured_token == "the model or the cache changes from token to token"
        made = tape.made
        for _ in range(4):
            step(deep, cache, token)
        assert tape.made == made == 3


def test_quantized_weights_run_as_they_are(tape: type[Tape], deep: Any, given: dict[str, Any]) -> None:
    quantized(deep.model.language_model)
    with vitcop_llava.prune(deep, CUTS):
        wanted, prefill = deep.generate(**given, max_new_tokens=8), deep(**given).logits
    with vitcop_llava.prune(deep, CUTS, capture=True) as pruner:
        assert torch.equal(deep.generate(**given, max_new_tokens=8, **STATIC), wanted)
        assert pruner.uncaptured_token == "a Linear holds a Int8Tensor"
        assert all(torch.equal(deep(**given).logits, prefill) for _ in range(3))
        assert pruner.uncaptured == "a Linear holds a Int8Tensor"
    assert tape.made == 0
