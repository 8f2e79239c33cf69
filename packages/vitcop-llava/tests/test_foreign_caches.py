"""Caches that have lost what a pruned one knows are recognized, and so is an image that was forgotten."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import FastV, VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = [ViTCoP(retained_tokens=24, cutoff_distance=3.0), FastV(retained_tokens=60), VisionZip(retained_tokens=24)]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


def rebuilt(cache: DynamicCache) -> DynamicCache:
    layers: Any = cache.layers
    return DynamicCache([(layer.keys, layer.values) for layer in layers])


def filled(cache: DynamicCache) -> DynamicCache:
    """As `rebuilt`, layer by layer."""
    layers: Any = cache.layers
    other = DynamicCache()
    for index, layer in enumerate(layers):
        other.update(layer.keys.clone(), layer.values.clone(), index)
    return other


@by_name
@pytest.mark.parametrize("make", [rebuilt, filled])
@pytest.mark.parametrize("run", ["generate", "forward"])
def test_rebuilt_cache_is_refused(
    model: Any, prompt: Make, pictures: Make, method: Any, make: Callable[[DynamicCache], DynamicCache], run: str
) -> None:
    ids, cache = prompt(5, "image", 7), DynamicCache()
    whole = torch.cat([ids, prompt(6, seed=1)], dim=1)
    with vitcop_llava.prune(model, method):
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        other = make(cache)
        given = {"attention_mask": torch.ones_like(whole), "past_key_values": other}
        new = {"generate": whole, "forward": whole[:, other.get_seq_length() :]}[run]
        with pytest.raises(ValueError, match=r"past_key_values:? must h"):
            (partial(model.generate, max_new_tokens=2) if run == "generate" else model)(input_ids=new, **given)
        assert model(input_ids=whole[:, ids.shape[1] :], past_key_values=cache).logits.isfinite().all()


@by_name
@pytest.mark.parametrize("step", [1, 3], ids=["token", "turn"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["same", "rounded"])
def test_rebuilt_cache_is_refused_after_a_long_text(
    model: Any, prompt: Make, pictures: Make, method: Any, step: int, kind: torch.dtype
) -> None:
    """Also where what follows holds no placeholder: the text is longer than all that was dropped."""
    ids, cache = prompt(5, "image", 170), DynamicCache()
    with vitcop_llava.prune(model, method):
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        layers: Any = cache.layers
        other = DynamicCache([(layer.keys.to(kind), layer.values.to(kind)) for layer in layers])
        with pytest.raises(ValueError, match="past_key_values must have as many tokens in every layer"):
            model(input_ids=prompt(5, seed=1)[:, 1 : 1 + step], past_key_values=other)


def test_rebuilt_cache_is_refused_under_keep_all(model: Any, prompt: Make, pictures: Make) -> None:
    cache = DynamicCache()
    with vitcop_llava.prune(model, METHODS[2]):
        model(input_ids=prompt(5, "image", 7), pixel_values=pictures(), past_key_values=cache)
    with (
        vitcop_llava.prune(model, ViTCoP(retention_ratio=1)),
        pytest.raises(ValueError, match="past_key_values must have as many tokens in every layer"),
    ):
        model(input_ids=prompt(2), past_key_values=rebuilt(cache))


@by_name
def test_unpruned_cache_goes_on(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    ids, cache, after = prompt(5, "image", 7), DynamicCache(), prompt(6, seed=1)
    model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
    wanted = model(input_ids=torch.cat([ids, after], dim=1), pixel_values=pictures()).logits[:, -after.shape[1] :]
    with vitcop_llava.prune(model, method):
        found = model(input_ids=after, past_key_values=cache).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)


@by_name
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_that_was_in_a_batch_with_images_goes_on(
    model: Any, prompt: Make, pictures: Make, method: Any, side: str
) -> None:
    """Rows that lost nothing have the keys of their prompts, and are taken for no pruned ones."""
    text, image = prompt(170, seed=3), prompt(3, "image", 8)
    gap = torch.zeros((1, text.shape[1] - image.shape[1]), dtype=torch.int64)
    ids = torch.cat([text, torch.cat([gap, image] if side == "left" else [image, gap], dim=1)])
    mask = torch.ones_like(ids)
    mask[1] = torch.cat([gap, torch.ones_like(image)] if side == "left" else [torch.ones_like(image), gap], dim=1)
    with vitcop_llava.prune(model, method):
        cache = DynamicCache()
        model(input_ids=ids, attention_mask=mask, pixel_values=pictures(), past_key_values=cache)
        alone = model(input_ids=text).past_key_values
        assert model(input_ids=text[:, 1:2], past_key_values=alone).logits.isfinite().all()
        with pytest.raises(ValueError, match=r"past_key_values:? must h"):
            model(input_ids=text[:, 1:2].expand(2, -1), past_key_values=rebuilt(cache))


@by_name
def test_forgotten_second_image_is_refused(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    cache, turn = DynamicCache(), prompt(2, "image", 3, seed=1)
    with vitcop_llava.prune(model, method):
        model(input_ids=prompt(5, "image", 7), pixel_values=pictures(), past_key_values=cache)
        with pytest.raises(
            ValueError, match=r"past_key_values must hold .* 144 placeholders after them, without pixel"
        ):
            model(input_ids=turn, past_key_values=cache)
        model(input_ids=turn, pixel_values=pictures(), past_key_values=cache)
