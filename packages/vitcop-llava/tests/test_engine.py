"""An engine that runs the model itself gets the count ahead, and then the tokens that a pruned model would take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engines import tokens_of
from torch import Tensor

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, VisionZip, VisPruner, ViTCoP
from vitcop_llava.engine import plan_image
from vitcop_llava.families import locate

METHODS = [
    EarlyViTCoP(retention_ratio=1 / 4, cutoff_distance=3.0),
    EarlyViTCoP(retention_ratio=1 / 4, ranking="layer0"),
    VisionZip(retention_ratio=1 / 4),
    DivPrune(retention_ratio=1 / 4),
    VisPruner(retention_ratio=1 / 4),
    VisionZip(retention_ratio=1),
]
methods = pytest.mark.parametrize("method", METHODS, ids=repr)


@methods
def test_images_of_one_unit(model: Any, pictures: Callable[..., Tensor], method: Any) -> None:
    pixels, tiling = pictures(2), locate(model).tiling
    wanted = vitcop_llava.embed_images(model, method, pixel_values=pixels)
    for own, each in zip(pixels, wanted, strict=True):
        assert plan_image(method, 8, tiling) == len(each)
        torch.testing.assert_close(tokens_of(model, method, own[None], tiling, (0, 0)), each, atol=1e-5, rtol=0)


@methods
def test_tiles(next_model: Any, next_inputs: Callable[..., Any], method: Any) -> None:
    anyres = locate(next_model).anyres
    assert anyres is not None
    for size in ((131, 77), (10, 90), (168, 168)):
        inputs = next_inputs([[2, size, 3]])
        (wanted,) = vitcop_llava.embed_images(next_model, method, **inputs)
        height, width = inputs["image_sizes"][0].tolist()
        tiling = anyres.tile(height, width)
        found = tokens_of(next_model, method, inputs["pixel_values"][0], tiling, (height, width))
        assert plan_image(method, 8, tiling) == len(found)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [ViTCoP(retained_tokens=24), FastV(retained_tokens=60)], ids=["vitcop", "fastv"])
def test_cuts_inside_the_language_model_are_refused(model: Any, method: Any) -> None:
    with pytest.raises(ValueError, match=r"method must cut before the language model alone, got .*, which cuts before"):
        plan_image(method, 8, locate(model).tiling)
