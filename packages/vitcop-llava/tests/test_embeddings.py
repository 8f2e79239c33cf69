"""Image embeddings for a language model elsewhere: what enters the first layer, and in the same order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from qwen_small import WIDE_ONE, given
from qwen_small import build as build_qwen
from torch import Tensor

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, VisionZip, VisPruner, ViTCoP

Make = Callable[..., Tensor]
METHODS = [
    EarlyViTCoP(retained_tokens=24, cutoff_distance=3.0),
    EarlyViTCoP(retained_tokens=24, ranking="layer0"),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
    VisPruner(retained_tokens=24),
]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


@methods
def test_shorter_prompt_of_embeddings_is_the_pruned_prompt(
    model: Any, prompt: Make, pictures: Make, method: Any
) -> None:
    ids, images = prompt(3, "image", 2, "image", 8), pictures(2)
    found = vitcop_llava.embed_images(model, method, pixel_values=images, input_ids=ids)
    assert [len(each) for each in found] == [24, 24]
    with vitcop_llava.prune(model, method):
        logits = model(input_ids=ids, pixel_values=images).logits
        again = vitcop_llava.embed_images(model, pixel_values=images)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    text, where = model.model.language_model.embed_tokens(ids)[0], (ids[0] == 99).nonzero().flatten()
    first, second = int(where[0]), int(where[144])
    parts = [text[:first], found[0], text[first + 144 : second], found[1], text[second + 144 :]]
    short = model(inputs_embeds=torch.cat(parts)[None]).logits
    torch.testing.assert_close(short[:, -8:], logits[:, -8:], atol=2e-5, rtol=0)


def test_keeping_everything_gives_the_models_own_features(model: Any, pictures: Make) -> None:
    found = vitcop_llava.embed_images(model, EarlyViTCoP(retention_ratio=1), pixel_values=pictures(2))
    whole = model.model.get_image_features(pixel_values=pictures(2)).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


def test_tiles_leave_their_newlines(next_model: Any, next_inputs: Any) -> None:
    inputs = next_inputs([[2, (131, 77), 3], [(10, 90), 4]])
    method = VisionZip(retention_ratio=1 / 3)
    found = vitcop_llava.embed_images(next_model, method, **inputs)
    with vitcop_llava.prune(next_model, method) as pruner:
        next_model(**inputs)
        plans = [row.plan for row in pruner.report.rows]
    assert [len(each) for each in found] == [plan.entry_tokens for plan in plans if plan is not None]
    with vitcop_llava.prune(next_model, method, keep_newline=True):
        kept = vitcop_llava.embed_images(next_model, **inputs)
    assert all(len(more) > len(less) for more, less in zip(kept, found, strict=True))


@pytest.mark.parametrize("method", [ViTCoP(retained_tokens=24), FastV(retained_tokens=60)], ids=["vitcop", "fastv"])
def test_cuts_inside_the_language_model_are_refused(model: Any, pictures: Make, method: Any) -> None:
    with pytest.raises(ValueError, match=r"method must cut before the language model alone, got .*; use EarlyViTCoP"):
        vitcop_llava.embed_images(model, method, pixel_values=pictures())
    with vitcop_llava.prune(model, METHODS[0]), pytest.raises(ValueError, match="method must be what the model is"):
        vitcop_llava.embed_images(model, method, pixel_values=pictures())


def test_what_cannot_be_embedded_is_refused(model: Any, pictures: Make) -> None:
    with pytest.raises(ValueError, match="method must be given where the model is not being pruned, got None"):
        vitcop_llava.embed_images(model, pixel_values=pictures())
    with pytest.raises(TypeError, match="pixel_values must be a tensor, got list"):
        vitcop_llava.embed_images(model, METHODS[0], pixel_values=pictures().tolist())
    inputs = given([[3, WIDE_ONE, 5]], "qwen3")
    with pytest.raises(ValueError, match="model must number its tokens along one axis to embed images"):
        vitcop_llava.embed_images(build_qwen("qwen3"), DivPrune(retention_ratio=1 / 2), **inputs)
