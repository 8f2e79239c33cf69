"""Bad input gets an error that names it, and leaves the model as it was."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    Phi3Config,
    Siglip2VisionConfig,
    StaticCache,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.cache_utils import DynamicLayer

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP

Make = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _untouched(request: pytest.FixtureRequest, model: Any) -> Iterator[None]:
    hooks = [name for name in vars(model) if "hook" in name]

    def count() -> list[int]:
        return [len(getattr(m, name) or ()) for m in model.modules() for name in hooks]

    before = count()
    yield
    assert count() == before


BUDGETS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "both": ({"retained_tokens": 16, "retention_ratio": 0.1}, ValueError, "must be given, and one alone"),
    "neither": ({}, ValueError, "must be given, and one alone"),
    "ratio-zero": ({"retention_ratio": 0}, ValueError, "retention_ratio must be"),
    "ratio-above-one": ({"retention_ratio": 1.5}, ValueError, "retention_ratio must be"),
    "ratio-nan": ({"retention_ratio": math.nan}, ValueError, "retention_ratio must be"),
    "ratio-bool": ({"retention_ratio": True}, TypeError, "retention_ratio must be"),
    "ratio-text": ({"retention_ratio": "1/9"}, TypeError, "retention_ratio must be"),
    "tokens-negative": ({"retained_tokens": -4}, ValueError, "retained_tokens must be"),
    "tokens-bool": ({"retained_tokens": True}, TypeError, "retained_tokens must be"),
    "tokens-infinite": ({"retained_tokens": math.inf}, ValueError, "retained_tokens must be"),
    "tokens-too-many": ({"retained_tokens": 145}, ValueError, "retained_tokens must be at most the 144"),
    "too-small": (
        {"retained_tokens": 1},
        ValueError,
        r"retained_tokens must be from 8 to 115 of the 144 visual tokens of an image, or all of them, for ViTCoP",
    ),
    "too-small-for-a-stage": (
        {"retention_ratio": 0.05},
        ValueError,
        r"retention_ratio must be from 0\.0546 \(5\.46%\) to 0\.8 \(80%\), or 1, for ViTCoP",
    ),
    "layers-out-of-order": ({"retention_ratio": 0.2, "layers": (6, 2)}, ValueError, "layers must be"),
    "layers-not-two": ({"retention_ratio": 0.2, "layers": (6,)}, TypeError, "layers must be"),
    "layers-zero": ({"retention_ratio": 0.2, "layers": (0, 6)}, ValueError, "layers must be"),
    "layers-beyond": ({"retention_ratio": 0.2, "layers": (2, 8)}, ValueError, "layers must be below the model's 8"),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_budget_is_refused_by_name(model: Any, case: str) -> None:
    settings, error, message = BUDGETS[case]
    with pytest.raises(error, match=message):
        vitcop_llava.prune(model, ViTCoP(**settings))


@pytest.mark.parametrize("name", ["retained_tokens", "retention_ratio"])
@pytest.mark.parametrize("method", [FastV, PyramidDrop, SparseVLM, VisionZip, DivPrune, VisPruner, ViTCoP])
def test_bounds_that_are_named_are_taken(model: Any, method: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be ") as caught:
        vitcop_llava.prune(model, method(**{name: 0.001}))
    pattern = r"(?:at least|from|to) ([\d.]+)"
    bounds = [float(bound) for bound in re.findall(pattern, str(caught.value))]
    step = 1 if name == "retained_tokens" else 0.0001
    assert len(bounds) == (2 if method is ViTCoP else 1)
    for bound, outside in zip(bounds, (-step, step), strict=False):
        vitcop_llava.prune(model, method(**{name: bound})).remove()
        with pytest.raises(ValueError, match="must be"):
            vitcop_llava.prune(model, method(**{name: bound + outside}))


def test_unsupported_model_is_told_what_installed_packages_support() -> None:
    pytest.importorskip("vitcop_video")
    with pytest.raises(TypeError, match="LlavaNextForConditionalGeneration, LlavaNextVideoForConditionalGeneration"):
        vitcop_llava.prune(torch.nn.Linear(2, 2), ViTCoP(retained_tokens=64))


def test_pruner_says_what_it_is(model: Any) -> None:
    with vitcop_llava.prune(model, ViTCoP(retained_tokens=64, layers=(1, 6))) as pruner:
        said = "ViTCoP(retained_tokens=64, layers=(1, 6))"
        assert repr(pruner) == f"<Pruner of a LlavaForConditionalGeneration, on: {said}>"
    assert repr(pruner) == f"<Pruner of a LlavaForConditionalGeneration, removed: {said}>"


@pytest.mark.parametrize("method", [None, "vitcop", ViTCoP, 64], ids=str)
def test_method_that_is_none_is_refused(model: Any, method: Any) -> None:
    with pytest.raises(TypeError, match="method must be a method"):
        vitcop_llava.prune(model, method)


VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def llava(vision: Any = None, text: Any = None, **settings: Any) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=vision or CLIPVisionConfig(**VISION), text_config=text or LlamaConfig(**TEXT), **settings
    )
    return LlavaForConditionalGeneration(config)


MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no-vision": (lambda: LlamaForCausalLM(LlamaConfig(**TEXT)), TypeError, "got a LlamaForCausalLM"),
    "vip-llava": (
        lambda: VipLlavaForConditionalGeneration(
            VipLlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT))
        ),
        ValueError,
        "must have a vision tower that Stage I can read, got the outputs of several layers side by side .*; use a",
    ),
    "pinpoints": (
        lambda: LlavaNextForConditionalGeneration(
            LlavaNextConfig(
                vision_config=CLIPVisionConfig(**VISION),
                text_config=LlamaConfig(**TEXT),
                image_grid_pinpoints=[[1008, 337]],
            )
        ),
        ValueError,
        "image_grid_pinpoints must be pairs of multiples of the tile size 16.*1008, 337",
    ),
    "inside": (
        lambda: llava().model,
        TypeError,
        "got a LlavaModel; prune the LlavaForConditionalGeneration",
    ),
    "inside-next": (
        lambda: LlavaNextModel(
            LlavaNextConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT))
        ),
        TypeError,
        "got a LlavaNextModel; prune the LlavaNextForConditionalGeneration that it is a part of",
    ),
    "no-model": (lambda: torch.nn.Linear(2, 2), TypeError, "got a Linear"),
    "dinov2": (
        lambda: llava(Dinov2Config(**VISION)),
        ValueError,
        r"got a Dinov2Model \(supported: CLIPVisionModel, SiglipVisionModel\)",
    ),
    "siglip2": (
        lambda: llava(Siglip2VisionConfig(**VISION | {"image_size": None})),
        ValueError,
        "must have a vision tower that sees every image at one size, got a Siglip2VisionModel with image_size=None",
    ),
    "phi3": (
        lambda: llava(text=Phi3Config(**TEXT, pad_token_id=0)),
        ValueError,
        "must have a language model with self_attn.q_proj and .* got a Phi3Model",
    ),
    "gemma3": (
        lambda: llava(text=Gemma3TextConfig(**TEXT, head_dim=8)),
        ValueError,
        "a rotary_emb and layers that share its positions, got a Gemma3TextModel",
    ),
    "with-cls": (lambda: llava(vision_feature_select_strategy="full"), ValueError, "vision_feature_select_strategy"),
    "features": (
        lambda: llava(vision_feature_layer=[-2, -1]),
        ValueError,
        "vision_feature_layer=.* instead of the index",
    ),
    "embeddings": (lambda: llava(vision_feature_layer=0), ValueError, "vision_feature_layer=.* instead of the index"),
}


@pytest.mark.parametrize("case", MODELS)
def test_model_is_refused_by_name(case: str) -> None:
    make, error, message = MODELS[case]
    model = make()
    with pytest.raises(error, match=f"^(?=model).*{message}"):
        vitcop_llava.prune(model, ViTCoP(retention_ratio=0.3, layers=(1, 3)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class QuantizedLayer(DynamicLayer):
    """Stands for a layer of another kind: quantization itself takes a further package."""


def quantized() -> DynamicCache:
    cache = DynamicCache()
    kind: Any = QuantizedLayer
    cache.layers = [kind() for _ in range(8)]
    return cache


CACHES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "offloaded static": (
        lambda config: StaticCache(config=config, max_cache_len=200, offloading=True),
        "got an offloaded StaticCache",
    ),
    "quantized": (lambda config: quantized(), "got a QuantizedLayer as layer 0"),
    "offloaded": (lambda config: DynamicCache(config=config, offloading=True), "got an offloaded DynamicCache"),
}


@pytest.mark.parametrize("case", CACHES)
def test_cache_is_refused_by_name(model: Any, prompt: Make, pictures: Make, budget: Any, case: str) -> None:
    make, message = CACHES[case]
    try:
        cache = make(model.config)
    except RuntimeError as error:  # of transformers, which asks for a stream that torch's build for CUDA has with a GPU
        pytest.skip(f"no such cache can be made here: {error}")
    with vitcop_llava.prune(model, budget()), pytest.raises(ValueError, match=f"past_key_values must .*{message}"):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)


IDS_3_8 = (3, "image", 8)
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "mask-4d": ({"attention_mask": torch.ones(1, 1, 156, 156)}, "attention_mask must be 2-D"),
    "mask-short": ({"attention_mask": torch.ones(1, 150)}, "attention_mask must cover 156 tokens"),
    "mask-long": ({"attention_mask": torch.ones(1, 160)}, "attention_mask must cover 156 tokens"),
    "mask-rows": ({"attention_mask": torch.ones(2, 156)}, "attention_mask must have 1 rows"),
    "mask-no-rows": ({"attention_mask": torch.ones(0, 156)}, "attention_mask must have 1 rows"),
    "positions-short": ({"position_ids": torch.arange(150)[None]}, r"position_ids must be a tensor \[1 or 1, 156\]"),
    "positions-rows": ({"position_ids": torch.zeros(3, 156).long()}, r"position_ids must be .*, got shape \(3, 156\)"),
    "positions-flat": ({"position_ids": torch.arange(156)}, r"position_ids must be .*, got shape \(156,\)"),
    "positions-axes": ({"position_ids": torch.zeros(3, 1, 156).long()}, r"position_ids must be .*, got shape \(3, 1"),
    "ids-flat": ({"input_ids": torch.zeros(156).long()}, r"input_ids must be of shape \[batch, length\], got \(156,\)"),
    "ids-missing": ({"input_ids": None}, "input_ids must be given, or inputs_embeds in its place, got neither"),
    "embeds-2d": (
        {"input_ids": None, "inputs_embeds": torch.zeros(156, 32)},
        r"inputs_embeds must be of shape \[batch, length, width\], got \(156, 32\)",
    ),
    "feature-layer": ({"vision_feature_layer": -1}, "vision_feature_layer must be 3"),
    "feature-layers": ({"vision_feature_layer": [1, 2]}, "vision_feature_layer must be 3"),
    "strategy": ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy must be 'default'"),
}


@pytest.mark.parametrize("case", CALLS)
def test_call_is_refused_by_name(model: Any, prompt: Make, pictures: Make, budget: Any, case: str) -> None:
    settings, message = CALLS[case]
    given = {"input_ids": prompt(*IDS_3_8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()):
        wanted = model(**given).logits
        with pytest.raises(ValueError, match=message):
            model(**given | settings)
        assert torch.equal(model(**given).logits, wanted)


@pytest.mark.parametrize("name", ["input_ids", "position_ids"])
def test_list_in_place_of_a_tensor_is_refused(model: Any, prompt: Make, pictures: Make, budget: Any, name: str) -> None:
    given = {"input_ids": prompt(*IDS_3_8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()):
        with pytest.raises(TypeError, match=rf"{name} must be a tensor \[.*\], got a list"):
            model(**given | {name: [[*range(156)]]})
        cache = model(**given).past_key_values
        with pytest.raises(TypeError, match=rf"{name} must be a tensor \[.*\], got a list"):
            model(**{"input_ids": torch.tensor([[7]]), name: [[7]]}, past_key_values=cache)


FOLLOWING: dict[str, tuple[dict[str, Any], str]] = {
    "mask-rows": ({"attention_mask": torch.ones(2, 157)}, "attention_mask must have 1 rows"),
    "mask-short": ({"attention_mask": torch.ones(1, 156)}, "attention_mask must cover 157 tokens"),
    "ids-flat": ({"input_ids": torch.zeros(1).long()}, r"input_ids must be of shape \[batch, length\], got \(1,\)"),
    "ids-missing": ({"input_ids": None}, "input_ids must be given, or inputs_embeds in its place, got neither"),
    "positions-long": ({"position_ids": torch.arange(157)[None]}, r"position_ids must be a tensor \[1 or 1, 1\]"),
}


@pytest.mark.parametrize("make", [DynamicCache, partial(StaticCache, max_cache_len=400)], ids=["growing", "static"])
@pytest.mark.parametrize("case", FOLLOWING)
def test_token_is_refused_by_name(
    model: Any, prompt: Make, pictures: Make, budget: Any, case: str, make: Callable[..., Any]
) -> None:
    (settings, message), token = FOLLOWING[case], {"input_ids": torch.tensor([[7]])}
    caches = [make(config=model.config.text_config) for _ in range(2)]
    with vitcop_llava.prune(model, budget()):
        for cache in caches:
            model(input_ids=prompt(*IDS_3_8), pixel_values=pictures(), past_key_values=cache)
        with pytest.raises(ValueError, match=message):
            model(**token | settings, past_key_values=caches[0])
        found, wanted = (model(**token, past_key_values=cache).logits for cache in caches)
        assert torch.equal(found, wanted)


def test_class_and_name_in_place_of_method_and_model_are_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"method must be .*, got the class ViTCoP"):
        vitcop_llava.prune(model, ViTCoP)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got a str; load the model first"):
        vitcop_llava.prune("llava-hf/llava-1.5-7b-hf", ViTCoP(retained_tokens=64))  # type: ignore[arg-type]


def test_argument_that_comes_twice_is_refused(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids, images = prompt(*IDS_3_8), pictures()
    with vitcop_llava.prune(model, budget()):
        with pytest.raises(TypeError, match=r"each argument once, got 1 by place, .*and input_ids once more by name"):
            model.model(ids, input_ids=ids, pixel_values=images)
        with pytest.raises(TypeError, match="each argument once, got 40 by place"):
            model.model(*[None] * 40)


@pytest.mark.parametrize(
    ("parts", "images", "message"),
    [
        (IDS_3_8, 2, "input_ids must hold 288 placeholders for the 2 images"),
        ((9,), 1, "input_ids must hold 144 placeholders for the 1 images"),
        ((3, "image", 2, "image"), 1, "Image features and image tokens do not match"),
        ((160, "image"), 2, "Image features and image tokens do not match"),
    ],
    ids=["no-room", "no-placeholders", "image-missing", "image-too-many"],
)
def test_prompt_and_images_that_disagree_are_refused(
    model: Any, prompt: Make, pictures: Make, budget: Any, parts: tuple[Any, ...], images: int, message: str
) -> None:
    with vitcop_llava.prune(model, budget()), pytest.raises(ValueError, match=message):
        model(input_ids=prompt(*parts), pixel_values=pictures(images))


def test_images_split_between_rows_are_refused(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids = torch.cat([prompt("image", 200), prompt("image", 200)])
    ids[0, 1:11], ids[1, 145:155] = 5, 99
    with (
        vitcop_llava.prune(model, budget()),
        pytest.raises(ValueError, match="whole images in every row, got 134 in row 0"),
    ):
        model(input_ids=ids, pixel_values=pictures(2))


def test_images_encoded_outside_are_refused(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    encoded = {"image": model.get_image_features(pictures(), return_dict=True)}
    with vitcop_llava.prune(model, budget()):
        inside = {"image": model.get_image_features(pictures(), return_dict=True)}
        with pytest.raises(ValueError, match="mm_encoder_outputs must be whole and encoded under the same pruner"):
            model(input_ids=prompt(*IDS_3_8), mm_encoder_outputs=encoded)
    with vitcop_llava.prune(model, budget()), pytest.raises(ValueError, match="mm_encoder_outputs must be whole"):
        model(input_ids=prompt(*IDS_3_8), mm_encoder_outputs=inside)


@pytest.mark.parametrize("size", [64, 150])
def test_chunked_prefill_is_refused(model: Any, prompt: Make, pictures: Make, budget: Any, size: int) -> None:
    ids = prompt(3, "image", 8)
    given: dict[str, Any] = {"max_new_tokens": 2, "prefill_chunk_size": size}
    given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()):
        if "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters:
            with pytest.raises(ValueError, match=r"mm_encoder_outputs must .*prefill_chunk_size"):
                model.generate(**given)
        else:  # these versions of transformers leave the images out of a chunked prefill, pruned or not
            with pytest.raises(ValueError, match="pixel_values must be given"):
                model.generate(**given)


def test_pruned_cache_is_refused_outside_the_block(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with vitcop_llava.prune(model, budget()):
        cache = model(input_ids=prompt(*IDS_3_8), pixel_values=pictures()).past_key_values
    with pytest.raises(ValueError, match="past_key_values must be continued by a model that is pruned"):
        model(input_ids=prompt(2), past_key_values=cache)


@pytest.mark.parametrize(
    "later",
    [{"layers": (3, 6)}, {"stage_three": False}, {"retention_ratio": 1}],
    ids=["other-layers", "fewer-cuts", "keep-all"],
)
def test_image_joining_a_cache_cut_elsewhere_is_refused(
    model: Any, prompt: Make, pictures: Make, budget: Any, later: dict[str, Any]
) -> None:
    other = ViTCoP(**later) if "retention_ratio" in later else budget("2/9", **later)
    given = {"input_ids": prompt(*IDS_3_8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()):
        cache = model(**given).past_key_values
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    with (
        vitcop_llava.prune(model, other),
        pytest.raises(ValueError, match="past_key_values must be pruned before layers"),
    ):
        model(**given, past_key_values=cache)
    assert [layer.keys.shape[2] for layer in cache.layers] == lengths
    with vitcop_llava.prune(model, budget("1/3")):
        model(**given, past_key_values=cache)


@pytest.mark.parametrize("count", [-10, -200, 1])
def test_cropping_into_an_image_is_refused(model: Any, prompt: Make, pictures: Make, budget: Any, count: int) -> None:
    with vitcop_llava.prune(model, budget()):
        cache = model(input_ids=prompt(*IDS_3_8), pixel_values=pictures()).past_key_values
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        with pytest.raises(ValueError, match="tokens_to_remove must be from -8 to 0"):
            cache.crop(count)
        assert [layer.keys.shape[2] for layer in cache.layers] == lengths
        cache.crop(-8)
