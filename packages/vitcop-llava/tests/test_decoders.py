"""A decoder is judged by what it has, a tower only by methods that look at it, a window by the call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP
from vitcop_llava.families.decoder import decoder_shape

Make = Callable[..., Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral-window": ("MistralConfig", {"sliding_window": 400}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 400, "max_window_layers": 4}),
    "qwen2-no-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 8}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 2, "sliding_window": None}),
    "cohere": ("CohereConfig", {"use_qk_norm": True}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.2}),
    "olmo": ("OlmoConfig", {"clip_qkv": 0.5}),
    "olmo2": ("Olmo2Config", {}),
    "stablelm": ("StableLmConfig", {"partial_rotary_factor": 0.5}),
    "glm": ("GlmConfig", {"head_dim": 8}),
}
VITCOP = ViTCoP(retained_tokens=24, cutoff_distance=3.0)


def vision(kind: Any = CLIPVisionConfig, side: int = 96) -> Any:
    return kind(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=8,
    )


def randomised(family: Any, config: Any, attention: str = "sdpa") -> Any:
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
        for name, parameter in model.named_parameters():
            if name.endswith("k_norm.weight"):  # of ones it would give all keys the same norm
                torch.nn.init.uniform_(parameter, 0.2, 1.8)
    model.generation_config.suppress_tokens = [config.image_token_id]
    return model.eval()


def llava(text: Any = None, tower: Any = None, attention: str = "sdpa", **settings: Any) -> Any:
    text = text or transformers.LlamaConfig(**SIZES)
    make: Any = LlavaConfig
    config = make(vision_config=tower or vision(), text_config=text, image_token_id=99, **settings)
    return randomised(LlavaForConditionalGeneration, config, attention)


def decoder(name: str, attention: str = "sdpa") -> Any:
    kind, settings = DECODERS[name]
    return llava(getattr(transformers, kind)(**SIZES | settings), attention=attention)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("method", [VITCOP, VisionZip(retained_tokens=24)], ids=["vitcop", "zip"])
def test_decoder_has_the_four_properties(name: str, prompt: Make, pictures: Make, pad: Any, method: Any) -> None:
    model, rows = decoder(name), [prompt(3, "image", 8), prompt(6, "image", 2, seed=1)]
    images, batch = pictures(2), pad(rows)
    plain = model(**batch, pixel_values=images).logits
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)):
        assert torch.equal(model(**batch, pixel_values=images).logits, plain)
    with vitcop_llava.prune(model, method) as pruner:
        found = model(**batch, pixel_values=images).logits[:, -1]
        alone = [model(input_ids=row, pixel_values=images[i : i + 1]).logits[:, -1] for i, row in enumerate(rows)]
        torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-5)
        given = {"input_ids": rows[0], "attention_mask": torch.ones_like(rows[0]), "pixel_values": images[:1]}
        made = model.generate(**given, max_new_tokens=4, do_sample=False)
        again = model(input_ids=made[:, :-1], pixel_values=images[:1]).logits[0, -4:].argmax(-1)
        # A suppressed placeholder would win nowhere here.
        assert again.tolist() == made[0, -4:].tolist()
        assert pruner.report.pruned
    assert torch.equal(model(**batch, pixel_values=images).logits, plain)


@pytest.mark.parametrize("name", [name for name in DECODERS if "window" not in name])
def test_attention_is_that_of_the_decoder(name: str, prompt: Make, pictures: Make) -> None:
    """FastV keeps what the last token of the unpruned model looks at most, as the model itself computes it."""
    model, ids = decoder(name, "eager"), prompt(3, "image", 8)
    seen = model(input_ids=ids, pixel_values=pictures(), output_attentions=True).attentions[1]
    wanted = seen[0, :, -1, 4:148].mean(0).topk(30).indices.sort().values
    for use_cache in (True, False):
        with vitcop_llava.prune(model, FastV(retained_tokens=51.5, layer=2)) as pruner:
            model(input_ids=ids, pixel_values=pictures(), use_cache=use_cache)
            kept = pruner.survivors().stages[0].patches
        wanted = seen[0, :, -1, 4:148].mean(0).topk(len(kept)).indices.sort().values
        assert torch.equal(kept, wanted)


def test_attention_that_is_not_known_is_refused() -> None:
    model = llava(transformers.StableLmConfig(**SIZES, qk_layernorm=True))
    with pytest.raises(ValueError, match="model must have an attention that vitcop can compute, got a"):
        vitcop_llava.prune(model, FastV(retained_tokens=60))
    vitcop_llava.prune(model, VITCOP).remove()


UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "norm-of-heads": ("StableLmConfig", {"qk_layernorm": True}),
    "norm-after-rotation": ("HunYuanDenseV1Config", {"head_dim": 8}),
    "no-rotation-in-some-layers": ("SmolLM3Config", {"no_rope_layer_interval": 4}),
    "norm-of-another-name": ("ApertusConfig", {}),
    "positions-in-the-attention": ("Ministral3Config", {"sliding_window": None, "head_dim": 8}),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_attention_of_its_own_kind_is_ranked_by_its_keys_alone(name: str, prompt: Make, pictures: Make) -> None:
    kind, settings = UNKNOWN[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"this version of transformers has no {kind}")
    model, ids = llava(getattr(transformers, kind)(**SIZES | settings)), prompt(3, "image", 8)
    for method in (FastV(retained_tokens=60), PyramidDrop(retained_tokens=60)):
        with pytest.raises(ValueError, match="model must have an attention that vitcop can compute"):
            vitcop_llava.prune(model, method)
    with vitcop_llava.prune(model, VITCOP):
        given = {"input_ids": ids, "pixel_values": pictures()}
        with_cache, without = (model(**given, use_cache=use_cache).logits for use_cache in (True, False))
    torch.testing.assert_close(with_cache, without, rtol=0, atol=1e-5)


def test_layers_that_torch_checkpoints_are_looked_into(prompt: Make, pictures: Make) -> None:
    model, given = llava(), {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, VITCOP):
        wanted = model(**given).logits
    for index, layer in enumerate(model.model.language_model.layers):
        model.model.language_model.layers[index] = checkpoint_wrapper(layer)
    with vitcop_llava.prune(model, VITCOP):
        assert torch.equal(model(**given, use_cache=False).logits, wanted)


def test_window_is_refused_where_a_call_is_longer(prompt: Make, pictures: Make) -> None:
    model = llava(transformers.MistralConfig(**SIZES, sliding_window=160))
    wide = llava(transformers.MistralConfig(**SIZES, sliding_window=None))
    ids, longer = prompt(3, "image", 8), prompt(3, "image", 20)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(wide, VITCOP):
        wanted = wide.generate(**given, max_new_tokens=5)
    with vitcop_llava.prune(model, VITCOP):
        assert torch.equal(model.generate(**given, max_new_tokens=5), wanted)
        with pytest.raises(ValueError, match=r"input_ids must be at most 160 tokens .* sliding_window, got 168"):
            model(input_ids=longer, pixel_values=pictures())
        with pytest.raises(ValueError, match=r"input_ids must be at most 160 tokens .* got 161"):
            model.generate(**given, max_new_tokens=8)
        assert model(input_ids=prompt(200)).logits.isfinite().all()  # text is left to the model


BLIND = [
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    DivPrune(retained_tokens=24),
]
TOWERS: dict[str, dict[str, Any]] = {
    "siglip": {"tower": vision(SiglipVisionConfig), "vision_feature_select_strategy": "full"},
    "siglip-less-one": {"tower": vision(SiglipVisionConfig), "vision_feature_select_strategy": "default"},
    "with-cls": {"vision_feature_select_strategy": "full"},
    "layers": {"vision_feature_layer": [1, -2]},
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("method", BLIND, ids=lambda method: type(method).__name__)
def test_tower_is_no_obstacle_to_methods_that_do_not_look_at_it(
    name: str, prompt: Make, pictures: Make, pad: Any, method: Any
) -> None:
    model = llava(**TOWERS[name])
    more = {"with-cls": 1, "siglip-less-one": -1}.get(name, 0)
    rows = [torch.cat([row[:, : 5 + more], row[:, 5:]], dim=1) for row in [prompt(3, "image", 8)] * 2]
    rows[1] = torch.cat([rows[1], prompt(4, seed=3)[:, 1:]], dim=1)
    images, batch = pictures(2), pad(rows)
    with vitcop_llava.prune(model, method) as pruner:
        found = model.generate(**batch, pixel_values=images, max_new_tokens=3)[:, -3:]
        assert {row.plan.visual_tokens for row in pruner.report.rows if row.plan} == {144 + more}
        for row, (ids, made) in enumerate(zip(rows, found, strict=True)):
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images[row : row + 1]}
            assert torch.equal(model.generate(**given, max_new_tokens=3)[0, -3:], made)
    if name != "siglip":
        with pytest.raises(ValueError, match="model must have a vision tower that Stage I can read, got vision_"):
            vitcop_llava.prune(model, VITCOP)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)) as pruner:
        plain = model(**batch, pixel_values=images).logits
        assert str(pruner.report)
    assert torch.equal(model(**batch, pixel_values=images).logits, plain)


@pytest.mark.parametrize("keep_newline", [False, True])
@pytest.mark.parametrize("method", [BLIND[0], BLIND[3]], ids=["fastv", "divprune"])
def test_tiles_of_a_tower_without_cls(next_model: Any, next_inputs: Any, method: Any, keep_newline: bool) -> None:
    config = LlavaNextConfig(
        vision_config=vision(SiglipVisionConfig, 48),
        text_config=transformers.LlamaConfig(**SIZES | {"vocab_size": next_model.config.text_config.vocab_size}),
        image_token_index=next_model.config.image_token_id,
        image_grid_pinpoints=next_model.config.image_grid_pinpoints,
        vision_feature_layer=[-2, -1],
        vision_feature_select_strategy="full",
    )
    model = randomised(LlavaNextForConditionalGeneration, config)
    batch, settings = next_inputs([[2, (131, 77), 3], [4, (96, 96), 1]]), {"max_new_tokens": 3}
    with vitcop_llava.prune(model, method, keep_newline=keep_newline) as pruner:
        found = model.generate(**batch, **settings)[:, -3:]
        rows = pruner.report.rows
        assert [row.newlines_kept for row in rows] == [row.newlines if keep_newline else 0 for row in rows]
        for row, parts in enumerate([[2, (131, 77), 3], [4, (96, 96), 1]]):
            assert torch.equal(model.generate(**next_inputs([parts]), **settings)[0, -3:], found[row])


@pytest.mark.parametrize("layer", [[-2], (-2,), [3]])
def test_list_of_one_feature_layer_is_one_layer(model: Any, prompt: Make, pictures: Make, layer: Any) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, VITCOP):
        wanted = model(**given).logits
        assert torch.equal(model(**given, vision_feature_layer=layer).logits, wanted)
    listed = llava(vision_feature_layer=[-2])
    with vitcop_llava.prune(listed, VITCOP) as pruner:
        listed(**given)
        assert pruner.report.pruned


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (MixtralConfig(intermediate_size=48, num_local_experts=4, num_experts_per_tok=2), 2 * 48),
        (Qwen3MoeConfig(intermediate_size=48, moe_intermediate_size=16, num_experts=8, num_experts_per_tok=3), 3 * 16),
        (
            Qwen2MoeConfig(moe_intermediate_size=16, num_experts_per_tok=2, shared_expert_intermediate_size=24),
            2 * 16 + 24,
        ),
        (LlamaConfig(intermediate_size=48), 48),
    ],
    ids=lambda value: type(value).__name__,
)
def test_cost_of_a_mixture_is_that_of_the_experts_in_use(config: Any, width: int) -> None:
    assert decoder_shape(config).intermediate_size == width
