"""A tower without a CLS token: its patches are ranked by the attention that they receive, and all else holds as ever.

LLaVA-interleave is such a model: SigLIP's last layer, and Qwen2.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlavaNextConfig, LlavaNextForConditionalGeneration, SiglipVisionConfig

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP

Make = Callable[..., Tensor]
KEEP_ALL = ViTCoP(retention_ratio=1)
METHODS = {
    "vitcop": ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    "zip": VisionZip(retained_tokens=24),
    "divprune": DivPrune(retained_tokens=24),
    "vispruner": VisPruner(retained_tokens=24),
    "early": EarlyViTCoP(retained_tokens=24, cutoff_distance=3.0),
}
OTHERS = {
    "fastv": FastV(retained_tokens=48),
    "pyramid": PyramidDrop(retained_tokens=48),
    "sparse": SparseVLM(retained_tokens=48),
}
# A layer below the last as in LLaVA-1.5, and the last as in LLaVA-interleave.
MODELS = [("llama", -2), ("mistral", -2), ("qwen2", -1), ("qwen3", -1), ("gemma", -2)]
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
models = pytest.mark.parametrize(("kind", "layer"), MODELS, ids=[kind for kind, _ in MODELS])
HOW: dict[str, Any] = {
    "max_new_tokens": 4,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@pytest.fixture(scope="session")
def interleave(build: Callable[..., Any]) -> Any:
    return build("qwen2", tower="siglip", layer=-1)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tower", "saliency"), [("siglip", "auto"), ("siglip", "received"), ("clip", "received")])
@pytest.mark.parametrize("layer", [-2, -1, 2])
def test_patches_are_ranked_by_what_they_receive(
    build: Any, prompt: Make, pictures: Make, tower: str, saliency: Any, layer: int
) -> None:
    """As the tower itself computes its attention, in the layer whose output is the feature."""
    model, ids, images = build("llama", "eager", tower=tower, layer=layer), prompt(3, "image", 8), pictures()
    maps = model.model.vision_tower(images, output_attentions=True).attentions
    received = maps[layer % 5 - 1][0].mean((0, 1))[-144:]
    for method in (ViTCoP, VisionZip):
        with vitcop_llava.prune(model, method(retained_tokens=24, vision_saliency=saliency)) as pruner:
            model(input_ids=ids, pixel_values=images)
            if method is ViTCoP:
                assert torch.equal(pruner.survivors().stages[0].patches, received.topk(50).indices.sort().values)


@pytest.mark.parametrize("method", [ViTCoP, VisionZip])
def test_cls_of_a_tower_without_one_is_refused_before_any_work(build: Any, method: Any) -> None:
    model = build(tower="siglip")
    wanted = "model must have a vision tower with a CLS token for .*, got a SiglipVisionModel; use .*'received' or"
    with pytest.raises(ValueError, match=wanted):
        vitcop_llava.prune(model, method(retained_tokens=24, vision_saliency="cls"))
    with vitcop_llava.prune(model, method(retained_tokens=24, vision_saliency="received")) as pruner:
        assert "received" in repr(pruner)


@models
def test_keep_all_equals_unpatched(build: Any, prompt: Make, pictures: Make, pad: Any, kind: str, layer: int) -> None:
    model = build(kind, tower="siglip", layer=layer)
    given = {**pad([prompt("image", 8), prompt(2, "image", 3, "image", 4), prompt(20)]), "pixel_values": pictures(3)}
    with vitcop_llava.prune(model, KEEP_ALL):
        kept, made = model(**given).logits, model.generate(**given, **HOW).sequences
    assert torch.equal(kept, model(**given).logits)
    assert torch.equal(made, model.generate(**given, **HOW).sequences)


@models
@methods
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_rows(
    build: Any, prompt: Make, pictures: Make, pad: Any, kind: str, layer: int, method: Any, side: str
) -> None:
    """One image, two, none, and one without a layer for words behind it; on either side of the padding."""
    model, images = build(kind, tower="siglip", layer=layer), pictures(4)
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2), prompt(9, "image", 1)]
    batch, owned = pad(rows, side), [images[:1], images[1:3], None, images[3:]]
    with vitcop_llava.prune(model, method):
        together = model(**batch, pixel_values=images).logits
        for number, (row, own) in enumerate(zip(rows, owned, strict=True)):
            alone = model(input_ids=row, pixel_values=own).logits[0]
            close(together[number][batch["attention_mask"][number].bool()], alone)


@models
@methods
def test_decoding_equals_recomputing(
    build: Any, prompt: Make, pictures: Make, kind: str, layer: int, method: Any
) -> None:
    model, ids, images = build(kind, tower="siglip", layer=layer), prompt(3, "image", 4, "image", 8), pictures(2)
    with vitcop_llava.prune(model, method):
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=images, **HOW)
        again = model(input_ids=found.sequences, pixel_values=images, use_cache=False).logits
        close(torch.stack(found.logits, 1), again[:, -5:-1])


@methods
def test_later_turns_equal_one_prompt(interleave: Any, prompt: Make, pictures: Make, method: Any) -> None:
    """A turn in text, and one more with an image of its own."""
    ids, words, more = prompt(3, "image", 8), prompt(6, seed=5), prompt(2, "image", 4, seed=6)
    with vitcop_llava.prune(interleave, method):
        cache = DynamicCache(config=interleave.config)
        interleave(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        turn = interleave(input_ids=words, past_key_values=cache).logits
        both = torch.cat([ids, words], dim=1)
        close(turn, interleave(input_ids=both, pixel_values=pictures()).logits[:, -words.shape[1] :])
        interleave(input_ids=more, pixel_values=pictures(seed=1), past_key_values=cache)
        assert cache.get_seq_length() == both.shape[1] + more.shape[1]


@methods
def test_beam_search_of_batch_equals_rows(interleave: Any, prompt: Make, pictures: Make, pad: Any, method: Any) -> None:
    rows, images = [prompt(2, "image", 8), prompt("image", 15, seed=1)], pictures(2)
    how = {**HOW, "num_beams": 3, "output_scores": True}
    with vitcop_llava.prune(interleave, method):
        together = interleave.generate(**pad(rows), pixel_values=images, **how)
        for number, row in enumerate(rows):
            given = {"input_ids": row, "attention_mask": torch.ones_like(row), "pixel_values": images[number][None]}
            alone = interleave.generate(**given, **how)
            close(together.sequences_scores[number], alone.sequences_scores[0])
            assert torch.equal(together.sequences[number, -4:], alone.sequences[0, -4:])


def attributes(model: Any) -> dict[str, Any]:
    return {name: (sorted(vars(module)), dict(module._forward_hooks)) for name, module in model.named_modules()}


@pytest.mark.parametrize("method", [*METHODS.values(), *OTHERS.values()], ids=[*METHODS, *OTHERS])
def test_block_leaves_nothing(interleave: Any, prompt: Make, pictures: Make, method: Any) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    before, wanted = attributes(interleave), interleave(**given).logits
    with vitcop_llava.prune(interleave, method) as pruner:
        pruned = interleave(**given).logits
        assert pruner.report.pruned
    with pytest.raises(ValueError, match="input_ids"), vitcop_llava.prune(interleave, method):
        interleave(input_ids=given["input_ids"][:, :9], pixel_values=pictures())
    assert attributes(interleave) == before
    assert torch.equal(interleave(**given).logits, wanted)
    assert not torch.equal(pruned, wanted)


@pytest.mark.parametrize("asked", [{"vision_feature_layer": -2}, {"vision_feature_select_strategy": "default"}])
def test_call_for_another_feature_is_refused(interleave: Any, prompt: Make, pictures: Make, asked: Any) -> None:
    (name,) = asked
    with (
        vitcop_llava.prune(interleave, METHODS["vitcop"]),
        pytest.raises(ValueError, match=f"{name} must be ('full'|4), as configured, got"),
    ):
        interleave(input_ids=prompt(3, "image", 8), pixel_values=pictures(), **asked)


NEXT_BATCH: list[list[Any]] = [[2, (131, 77), 3], [(10, 90), 2, (96, 96), 3], [4], [(200, 9), 1, (5, 3), 2]]


@methods
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tiled_batch_equals_rows(build_next: Any, next_inputs: Any, method: Any, kind: str, side: str) -> None:
    model, batch = build_next(kind, tower="siglip"), next_inputs(NEXT_BATCH, side)
    plain = model(**batch).logits
    with vitcop_llava.prune(model, KEEP_ALL):
        assert torch.equal(model(**batch).logits, plain)
    with vitcop_llava.prune(model, method):
        together = model(**batch).logits
        for number, row in enumerate(NEXT_BATCH):
            alone = next_inputs([row])
            close(together[number][batch["attention_mask"][number].bool()], model(**alone).logits[0])
        made = model.generate(**next_inputs(NEXT_BATCH[:1]), **HOW)
        whole = {**next_inputs(NEXT_BATCH[:1]), "input_ids": made.sequences}
        whole["attention_mask"] = torch.ones_like(made.sequences)
        close(torch.cat(made.logits), model(**whole).logits[0, -5:-1])
    assert torch.equal(model(**batch).logits, plain)


@torch.no_grad()
def test_tile_need_not_be_whole_patches(next_model: Any) -> None:
    """SigLIP's 384 pixels are 27 patches of 14, and six pixels that no patch has."""
    text, image = next_model.config.text_config, next_model.config.image_token_id
    tower = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=46, patch_size=8
    )
    config = LlavaNextConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=image,
        image_grid_pinpoints=[[46, 92], [92, 46], [92, 92]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model: Any = LlavaNextForConditionalGeneration(config).eval()
    for size, tiles in (((92, 92), 5), ((40, 71), 3)):
        pixels = {"pixel_values": torch.randn(1, tiles, 3, 46, 46), "image_sizes": torch.tensor([size])}
        (features,) = model.model.get_image_features(**pixels).pooler_output
        ids = torch.tensor([[1, *[image] * len(features), 7, 8]])
        with vitcop_llava.prune(model, ViTCoP(retention_ratio=0.4)) as pruner:
            assert model(input_ids=ids, **pixels).logits.isfinite().all()
            assert pruner.report.pruned
