"""What is observed of a model, against its own attention maps and its cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava.tools.analysis import Observation, observe, summarize
from vitcop_llava.tools.analysis.report import claims

Make = Callable[..., Tensor]
HOOKS = [name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)]
PATCHES = 144
ROW = (3, "image", 8)
FAMILIES = [("llama", 2), ("llama", 4), ("mistral", 1), ("qwen2", 2)]


def hooks(model: nn.Module) -> dict[str, Any]:
    """Hooks and attributes of every module."""
    return {
        name: (sorted(vars(module)), {key: dict(getattr(module, key)) for key in HOOKS})
        for name, module in model.named_modules()
    }


def close(found: NDArray[Any], wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-6)


def key_norms(cache: Any, visual: Tensor) -> Tensor:
    """``[L, n]``, from the rotated keys in a cache."""
    return torch.stack([layer.keys[0][:, visual].pow(2).sum((0, 2)).sqrt() for layer in cache.layers])


def check_language(seen: Observation, model: Any, given: dict[str, Any], visual: Tensor, text: Tensor) -> None:
    """Holds an observation of a single row against an eager model of the same weights."""
    cache = DynamicCache(config=model.config)
    maps = model(**given, past_key_values=cache, output_attentions=True).attentions
    rows = torch.stack([each[0].mean(0) for each in maps])
    close(seen.attention, rows[:, -1, visual])
    close(seen.text_attention, rows[:, text][:, :, visual].mean(1))
    close(seen.key_norms, key_norms(cache, visual))


@pytest.mark.parametrize(("kind", "kv_heads"), FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_observation_is_the_attention_map(
    build: Callable[..., Any], prompt: Make, pictures: Make, kind: str, kv_heads: int, attention: str
) -> None:
    given = {"input_ids": prompt(*ROW), "pixel_values": pictures()}
    (seen,) = observe(build(kind, attention, kv_heads), **given)
    reference, visual = build(kind, "eager", kv_heads), torch.arange(4, 4 + PATCHES)
    check_language(seen, reference, given, visual, torch.arange(4 + PATCHES, 12 + PATCHES))
    assert seen.grid == (12, 12)

    tower = build(kind, "eager", kv_heads).model.vision_tower
    maps = tower(given["pixel_values"], output_attentions=True).attentions
    assert len(seen.cls_attention) == 1
    close(seen.cls_attention[0], maps[-2][0, :, 0, 1:].sum(0))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_observation_has_the_cutoff_that_fits(build: Any, prompt: Make, pictures: Make, tower: str) -> None:
    """That of a prefill at a ninth, whose Stage I keeps as many tokens."""
    model, given = build(tower=tower), {"input_ids": prompt(2, "image", 8), "pixel_values": pictures()}
    (seen,) = observe(model, **given)
    assert seen.has_cls == (tower == "clip")
    for cutoff in ("auto", None):
        method = vitcop_llava.ViTCoP(retention_ratio=1 / 9, cutoff_distance=cutoff)
        with vitcop_llava.prune(model, method) as pruner:
            model(**given)
            used = pruner.report.cutoff_distance if cutoff == "auto" or tower == "siglip" else None
        if used is None:
            assert summarize([seen]).cutoff == 8
        else:
            assert seen.cutoffs == (used,)


def test_analysis_of_a_tower_without_cls_says_so(build: Any, prompt: Make, pictures: Make) -> None:
    model = build("qwen2", "eager", tower="siglip")
    given = {"input_ids": prompt(2, "image", 8), "pixel_values": pictures()}
    analysis = summarize(observe(model, **given))
    received = model.model.vision_tower(given["pixel_values"], output_attentions=True).attentions[-2][0].mean((0, 1))
    close(observe(model, **given)[0].cls_attention[0], received)
    first, _, last = claims(analysis, {"left_out": ""})
    assert first[:2] == ("received attention that the top 10 % of the tokens hold", "no such tower")
    assert last[2].startswith("'auto', which finds ")
    stored = analysis.as_json()
    assert (stored["vision_saliency"], stored["cutoff_distance"]["default"]) == ("received", "auto")
    assert len(stored["cutoff_distance"]["auto"]) == 1


def test_observation_of_tiles_leaves_newlines_and_padding_out(
    build_next: Callable[..., Any], next_inputs: Callable[..., dict[str, Any]]
) -> None:
    given = next_inputs([[2, (200, 90), 3, (60, 130), 6]])
    (seen,) = observe(build_next("mistral"), **given)
    model = build_next("mistral", "eager")
    tilings = [vitcop_llava.tile_image(*size, pinpoints=model.config.image_grid_pinpoints, tile_size=48, patch_size=8)
               for size in given["image_sizes"].tolist()]  # fmt: skip
    columns = (given["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    visual, start = [], 0
    for tiling in tilings:
        own = columns[start : start + tiling.placeholders].tolist()
        visual += [column for place, column in enumerate(own) if place not in tiling.newline_places]
        start += tiling.placeholders
    assert any(tiling.newlines for tiling in tilings)
    last, length = int(columns[-1]), given["input_ids"].shape[1]
    check_language(seen, model, given, torch.tensor(visual), torch.arange(last + 1, length))
    assert [len(unit) for unit in seen.cls_attention] == [count for tiling in tilings for count in tiling.units]

    tiles = torch.cat(
        [pixels[: len(tiling.boxes)] for pixels, tiling in zip(given["pixel_values"], tilings, strict=True)]
    )
    maps = model.model.vision_tower(tiles, output_attentions=True).attentions[-2][:, :, 0, 1:].sum(1)
    masks = torch.tensor([tiling.mask(unit) for tiling in tilings for unit in range(len(tiling.boxes))]).flatten(1)
    close(np.concatenate(seen.cls_attention), maps[masks])


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_is_observed_as_its_rows(
    model: Any, prompt: Make, pictures: Make, pad: Callable[..., dict[str, Tensor]], side: str
) -> None:
    rows = [prompt(2, "image", 9), prompt(1, "image", 4, "image", seed=1), prompt("image", 3, seed=2)]
    pixels = pictures(4)
    together = observe(model, **pad(rows, side), pixel_values=pixels)
    for row, part, seen in zip(rows, (pixels[:1], pixels[1:3], pixels[3:]), together, strict=True):
        (alone,) = observe(model, input_ids=row, pixel_values=part)
        for name in ("attention", "text_attention", "key_norms"):
            close(getattr(seen, name), torch.from_numpy(getattr(alone, name)))
        close(np.stack(seen.cls_attention), torch.from_numpy(np.stack(alone.cls_attention)))


def test_prompt_that_ends_with_its_image_has_its_last_token_for_text(model: Any, prompt: Make, pictures: Make) -> None:
    (seen,) = observe(model, input_ids=prompt(3, "image"), pixel_values=pictures())
    np.testing.assert_array_equal(seen.text_attention, seen.attention)


def test_more_text_than_is_computed_at_a_time(build: Callable[..., Any], prompt: Make, pictures: Make) -> None:
    given = {"input_ids": prompt("image", 150), "pixel_values": pictures()}
    (seen,) = observe(build(), **given)
    text = torch.arange(1 + PATCHES, 151 + PATCHES)
    check_language(seen, build("llama", "eager"), given, torch.arange(1, 1 + PATCHES), text)


def test_observing_leaves_the_model_as_it_was(model: Any, prompt: Make, pictures: Make) -> None:
    given = {"input_ids": prompt(*ROW), "pixel_values": pictures()}
    before, logits = hooks(model), model(**given).logits
    observe(model, **given)
    assert hooks(model) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model.language_model.layers[3].mlp, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            observe(model, **given)
    assert hooks(model) == before
    assert torch.equal(model(**given).logits, logits)


def test_pruned_model_is_not_observed(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    given = {"input_ids": prompt(*ROW), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()), pytest.raises(ValueError, match="model must not be pruned"):
        observe(model, **given)
    assert observe(model, **given)


OVERFLOWING = {
    "model must give finite key norms in layer 5": lambda model: model.language_model.layers[5].self_attn,
    "model must give finite attention in its vision tower": lambda model: (
        model.vision_tower.encoder.layers[-2].self_attn
    ),
}


@pytest.mark.parametrize("said", OVERFLOWING)
def test_layer_that_overflows_is_named(model: Any, prompt: Make, pictures: Make, said: str) -> None:
    given = {"input_ids": prompt(*ROW), "pixel_values": pictures()}
    broken = OVERFLOWING[said](model.model).k_proj
    handle = broken.register_forward_hook(lambda *inputs: inputs[2] * float("inf"))
    with pytest.raises(ValueError, match=said):
        observe(model, **given)
    handle.remove()


BAD: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], type[Exception], str]] = {
    "no ids": (lambda given: {**given, "input_ids": None}, TypeError, "input_ids must be a tensor"),
    "flat ids": (lambda given: {**given, "input_ids": given["input_ids"][0]}, TypeError, "got of shape"),
    "no pixels": (lambda given: {**given, "pixel_values": None}, ValueError, "pixel_values must be given"),
    "two pictures": (
        lambda given: {**given, "pixel_values": given["pixel_values"].repeat(2, 1, 1, 1)},
        ValueError,
        "pixel_values must be the images of the prompt, which has placeholders for 1, got 2",
    ),
    "half an image": (
        lambda given: {**given, "input_ids": given["input_ids"][:, :100]},
        ValueError,
        "input_ids must hold the placeholders of whole images in every row, got 96",
    ),
    "a row of text": (
        lambda given: {**given, "input_ids": torch.cat([given["input_ids"], torch.ones_like(given["input_ids"])])},
        ValueError,
        r"input_ids\[1\] must have an image or a clip",
    ),
    "a cache": (lambda given: {**given, "past_key_values": DynamicCache()}, ValueError, "past_key_values must not"),
    "a short mask": (
        lambda given: {**given, "attention_mask": torch.ones(1, 3)},
        ValueError,
        "attention_mask must be",
    ),
    "another layer": (lambda given: {**given, "vision_feature_layer": -1}, ValueError, "vision_feature_layer must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(model: Any, prompt: Make, pictures: Make, case: str) -> None:
    change, error, said = BAD[case]
    with pytest.raises(error, match=said):
        observe(model, **change({"input_ids": prompt(*ROW), "pixel_values": pictures()}))


def test_unsupported_model_is_named() -> None:
    with pytest.raises(TypeError, match=r"model must be one of .*, got a Linear"):
        observe(nn.Linear(2, 2), input_ids=torch.ones(1, 2, dtype=torch.int64))
