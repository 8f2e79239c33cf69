"""A prefix is good for the weights and adapters that it was made with, in a file and in memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters import by_transformers
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import vitcop_llava
from vitcop_llava import ImagePrefix
from vitcop_llava.compat import CACHE
from vitcop_llava.weights.fingerprint import fingerprint

# PEFT asks transformers for a property by its older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

Make = Callable[..., Tensor]
QUESTION = [[5, 6, 7, 8]]
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj)"
TOWER = r".*vision_tower.*\.(q_proj|v_proj)"


def lora(target: str = LANGUAGE, **settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, target_modules=target, init_lora_weights=False, **settings)


def wrap(model: Any, **settings: Any) -> Any:
    """Adapters A, in effect, and B, by PEFT's own model around it."""
    wrapper = peft.get_peft_model(model, lora(**settings), adapter_name="A")
    wrapper.add_adapter("B", lora(**settings))
    return wrapper.eval()


def integrate(model: Any) -> Any:
    """The same by transformers' own methods."""
    model.add_adapter(lora(), adapter_name="B")
    model.add_adapter(lora(), adapter_name="A")
    model.set_adapter("A")
    return model.eval()


@pytest.fixture
def bare(model: Any) -> Any:
    """A model of one's own, to put adapters on."""
    torch.manual_seed(0)
    return copy.deepcopy(model)


@pytest.fixture
def encode(prompt: Make, pictures: Make, budget: Any) -> Callable[..., ImagePrefix]:
    def make(model: Any, **settings: Any) -> ImagePrefix:
        return vitcop_llava.encode_image(model, prompt(3, "image", 2), pictures(), method=budget(**settings))

    return make


@pytest.fixture
def check(encode: Any, budget: Any, tmp_path: Path) -> Callable[..., None]:
    """Makes a prefix, changes something, and expects the prefix to be refused, or to answer as a fresh one does."""

    def run(model: Any, change: Callable[[], Any], refused: str | None, **settings: Any) -> None:
        prefix, path, method = encode(model, **settings), tmp_path / "image.safetensors", budget(**settings)
        prefix.save(path)
        change()
        uses: list[Callable[[], Any]] = [
            lambda: ImagePrefix.load(path, model).inputs(QUESTION),
            lambda: prefix.inputs(QUESTION),
        ]
        with vitcop_llava.prune(model, method):
            fresh = answer(model, encode(model, **settings).inputs(QUESTION))
            for use in uses:
                if refused is None:
                    torch.testing.assert_close(answer(model, use()), fresh, atol=1e-4, rtol=0)
                    continue
                with pytest.raises(ValueError, match=refused):
                    answer(model, use())

    return run


def answer(model: Any, inputs: dict[str, Any]) -> Tensor:
    how: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "output_logits": True}
    output = model.generate(**inputs, **how, return_dict_in_generate=True)
    return torch.stack(output.logits)


@pytest.mark.parametrize("target", [LANGUAGE, TOWER], ids=["language-model", "tower"])
def test_other_adapter_is_refused(bare: Any, check: Any, target: str) -> None:
    wrapper = wrap(bare, target=target)
    check(bare, lambda: wrapper.set_adapter("B"), r"got weights .* other adapters \(A\); .* adapters \(B\)")


@by_transformers
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_other_adapter_of_transformers_is_refused(bare: Any, check: Any) -> None:
    integrate(bare)
    check(bare, lambda: bare.set_adapter("B"), r"got weights .* other adapters \(A\); .* adapters \(B\)")


def test_disabled_adapter_is_refused(bare: Any, check: Any) -> None:
    wrapper = wrap(bare)
    with wrapper.disable_adapter():  # outside, because it is enabled again when the block is left
        pass
    check(bare, wrapper.base_model.disable_adapter_layers, r"other adapters \(A\); .* adapters \(none\)")


def test_prefix_inside_disable_adapter_is_that_of_the_bare_model(
    model: Any, bare: Any, encode: Any, budget: Any, tmp_path: Path
) -> None:
    encode(model).save(tmp_path / "bare")
    wrapper = wrap(bare)
    with wrapper.disable_adapter():
        loaded = ImagePrefix.load(tmp_path / "bare", bare, budget())
        with vitcop_llava.prune(bare, budget()):
            answer(bare, loaded.inputs(QUESTION))
    with pytest.raises(ValueError, match="other adapters"):
        ImagePrefix.load(tmp_path / "bare", bare, budget())
    with (
        vitcop_llava.prune(bare, budget()),
        pytest.raises(ValueError, match="past_key_values must be made under this model"),
    ):
        answer(bare, loaded.inputs(QUESTION))


CHANGES: dict[str, tuple[Callable[[Any, Any], Any], str | None]] = {
    "merged": (lambda wrapper, model: wrapper.merge_adapter(), r"with the adapters \(A \(merged\)\)"),
    "merged-and-unloaded": (lambda wrapper, model: wrapper.merge_and_unload(), r"with the adapters \(none\)"),
    "unloaded": (lambda wrapper, model: wrapper.unload(), r"with the adapters \(none\)"),
    "both": (lambda wrapper, model: wrapper.base_model.set_adapter(["A", "B"]), r"with the adapters \(A, B\)"),
    "scaled": (lambda wrapper, model: scale(model, 0.5), r"with the adapters \(A\)"),
    "trained": (lambda wrapper, model: first(model, "lora_A.A").weight.data.mul_(1.001), r"with the adapters \(A\)"),
    "base-trained": (
        lambda wrapper, model: first(model, "up_proj").weight.data.mul_(1.001),
        r"with the adapters \(A\)",
    ),
    "third": (lambda wrapper, model: wrapper.add_adapter("C", lora()), None),
    "other-trained": (lambda wrapper, model: first(model, "lora_A.B").weight.data.mul_(2), None),
    "deleted-other": (lambda wrapper, model: wrapper.delete_adapter("B"), None),
    "there-and-back": (lambda wrapper, model: (wrapper.set_adapter("B"), wrapper.set_adapter("A")), None),
    "eager": (lambda wrapper, model: model.set_attn_implementation("eager"), None),
}


def scale(model: Any, factor: float) -> None:
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(factor)


def first(model: Any, ending: str) -> Any:
    return next(module for name, module in model.model.language_model.named_modules() if name.endswith(ending))


@pytest.mark.parametrize("change", CHANGES)
def test_prefix_follows_what_is_in_effect(bare: Any, check: Any, change: str) -> None:
    wrapper, (make, refused) = wrap(bare), CHANGES[change]
    check(bare, lambda: make(wrapper, bare), refused)


def test_prefix_of_everything_is_refused_to_the_bare_model_too(bare: Any, encode: Any) -> None:
    wrapper = wrap(bare)
    prefix = encode(bare, share="1")
    answer(bare, prefix.inputs(QUESTION))
    wrapper.set_adapter("B")
    with pytest.raises(ValueError, match="prefix must be made under this model and its adapters"):
        prefix.cache()


def test_merged_adapter_is_one_model_however_it_was_merged(bare: Any) -> None:
    wrapper = wrap(bare)
    twin = copy.deepcopy(wrapper)
    wrapper.merge_adapter()
    merged = fingerprint(bare.model)
    assert fingerprint(twin.merge_and_unload().model)["weights"] == merged["weights"]
    wrapper.base_model.disable_adapter_layers()  # the next call takes it out
    assert fingerprint(bare.model)["weights"] != merged["weights"]


def test_names_of_adapters_decide_nothing(model: Any) -> None:
    found = []
    for name in ("A", "default"):
        torch.manual_seed(1)
        own = copy.deepcopy(model)
        peft.get_peft_model(own, lora(), adapter_name=name)
        found.append(fingerprint(own.model))
    assert [one["adapters"] for one in found] == ["A", "default"]
    assert found[0]["weights"] == found[1]["weights"] != fingerprint(model.model)["weights"]


def test_copies_of_modules_count_while_they_are_active(bare: Any, check: Any) -> None:
    wrapper = wrap(bare, modules_to_save=["linear_1"])  # of the projector
    with torch.no_grad():
        bare.model.multi_modal_projector.linear_1.modules_to_save["B"].weight.mul_(2)
    for module in bare.modules():  # adapters alike, so that the copies alone tell
        for name in ("lora_A", "lora_B"):
            if hasattr(module, name):
                getattr(module, name)["B"].load_state_dict(getattr(module, name)["A"].state_dict())
    check(bare, lambda: wrapper.set_adapter("B"), r"other adapters \(A\)")


def test_cache_remembers_when_the_adapter_changes_before_the_answer(bare: Any, encode: Any, budget: Any) -> None:
    wrapper = wrap(bare)
    with vitcop_llava.prune(bare, budget()):
        inputs = encode(bare).inputs(QUESTION)
        copied = copy.deepcopy(inputs[CACHE])
        wrapper.set_adapter("B")
        for cache in (inputs[CACHE], copied):
            with pytest.raises(ValueError, match="activate those again, or make the prefix again with encode_image"):
                answer(bare, {**inputs, CACHE: cache})
        wrapper.set_adapter("A")
        answer(bare, inputs)


def test_prefix_of_another_checkpoint_is_refused_in_memory(
    model: Any, build: Callable[..., Any], encode: Any, budget: Any
) -> None:
    other = build(seed=1)
    with vitcop_llava.prune(other, budget()), pytest.raises(ValueError, match="weights of another checkpoint"):
        answer(other, encode(model).inputs(QUESTION))


def test_prefix_serves_a_copy_of_its_model(model: Any, encode: Any, budget: Any) -> None:
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    with vitcop_llava.prune(twin, budget()):
        answer(twin, encode(model).inputs(QUESTION))


class Quantized(nn.Module):
    """A linear layer whose weights are whole numbers, in buffers."""

    def __init__(self, linear: nn.Linear, levels: int) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / levels
        self.register_buffer("numbers", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, hidden: Tensor) -> Tensor:
        weight: Any = self.numbers
        return nn.functional.linear(hidden, weight * self.scale)


@pytest.mark.parametrize("levels", [127, 63])
def test_requantized_weights_are_other_weights(bare: Any, check: Any, levels: int) -> None:
    attention = bare.model.language_model.layers[0].self_attn
    plain = attention.v_proj
    attention.v_proj = Quantized(plain, 127)
    change = lambda: setattr(attention, "v_proj", Quantized(plain, levels))  # noqa: E731
    check(bare, change, None if levels == 127 else "weights of another checkpoint")


def test_weights_of_several_tensors_are_told_apart() -> None:
    found = []
    for seed in (0, 0, 1):
        parts = torch.zeros(3, 4), torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        module = nn.Module()
        module.weight = nn.Parameter(TwoTensor(*parts))
        found.append(fingerprint(module)["weights"])
    assert found[0] == found[1] != found[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning")
def test_packed_weights_are_told_apart(model: Any, build: Callable[..., Any]) -> None:
    found = []
    for own in (model, model, build(seed=1)):
        packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(own.model.language_model), {nn.Linear})
        packed.embed_tokens = nn.Identity()
        found.append(fingerprint(packed)["weights"])
    assert found[0] == found[1] != found[2]
