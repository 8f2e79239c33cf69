"""An image that the attention mask hides is an absent image."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    ViTCoP(retained_tokens=24, cutoff_distance=3.0, compat="official"),
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
]
by_name = pytest.mark.parametrize(
    "method", METHODS, ids=["vitcop", "official", "fastv", "pyramid", "sparse", "zip", "divprune"]
)
TWO = (5, "image", 7, "image", 3)


def logits(model: Any, ids: Tensor, images: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """Of three generated tokens, ``[rows, 3, vocabulary]``."""
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
    if images is not None:
        given["pixel_values"] = images
    made = model.generate(**given, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return torch.stack(made.logits, dim=1)


def without(ids: Tensor, image: int) -> tuple[Tensor, Tensor]:
    """``[1, L]`` ids and mask with one image hidden; and the ids that are left."""
    columns = (ids[0] == 99).nonzero()[:, 0]
    own = columns[144 * image : 144 * (image + 1)]
    mask = torch.ones_like(ids)
    mask[0, own] = 0
    return mask, ids[:, mask[0] > 0]


@by_name
def test_only_image_hidden_is_a_prompt_of_text(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    ids = prompt(5, "image", 7)
    mask, text = without(ids, 0)
    with vitcop_llava.prune(model, method):
        found = logits(model, ids, pictures(), mask)
    torch.testing.assert_close(found, logits(model, text, None), rtol=0, atol=5e-6)


@by_name
@pytest.mark.parametrize("hidden", [0, 1])
def test_one_image_of_two_hidden(model: Any, prompt: Make, pictures: Make, method: Any, hidden: int) -> None:
    ids, images = prompt(*TWO), pictures(2)
    mask, rest = without(ids, hidden)
    with vitcop_llava.prune(model, method) as pruner:
        found = logits(model, ids, images, mask)
        assert pruner.report.rows[0].images == 1
        kept = pruner.survivors()
        wanted = logits(model, rest, images[1 - hidden : 2 - hidden])
        assert torch.equal(kept.clusters, pruner.survivors().clusters)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)


@by_name
def test_image_hidden_in_one_row_of_a_batch(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    rows = [prompt(*TWO, seed=seed) for seed in range(3)]
    ids, images, mask = torch.cat(rows), pictures(6), torch.ones(3, rows[0].shape[1], dtype=torch.int64)
    mask[1], rest = without(rows[1], 0)
    with vitcop_llava.prune(model, method):
        found = logits(model, ids, images, mask)
        alone = [
            logits(model, rows[0], images[:2]),
            logits(model, rest, images[3:4]),
            logits(model, rows[2], images[4:]),
        ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=5e-6)


def test_hidden_image_under_beams(model: Any, prompt: Make, pictures: Make) -> None:
    ids = torch.cat([prompt(*TWO), prompt(*TWO, seed=1)])
    mask = torch.ones_like(ids)
    mask[:1], rest = without(ids[:1], 1)
    beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    with vitcop_llava.prune(model, METHODS[0]):
        both = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pictures(4), **beams)
        one = model.generate(
            input_ids=rest, attention_mask=torch.ones_like(rest), pixel_values=pictures(4)[:1], **beams
        )
    assert torch.equal(both[0, -4:], one[0, -4:])


def test_tiles_of_a_hidden_image(next_model: Any, next_inputs: Any) -> None:
    given = next_inputs([[2, (131, 77), 3, (96, 96), 4]])
    token = next_model.config.image_token_id
    columns = (given["input_ids"][0] == token).nonzero()[:, 0]
    gap = int((columns[1:] - columns[:-1]).argmax()) + 1  # where the first image's placeholders end
    given["attention_mask"][0, columns[:gap]] = 0
    rest = {name: given[name][1:] for name in ("pixel_values", "image_sizes")}
    shown = given["attention_mask"][0] > 0
    rest |= {name: given[name][:, shown] for name in ("input_ids", "attention_mask")}
    settings = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    with vitcop_llava.prune(next_model, ViTCoP(retention_ratio=1 / 6, cutoff_distance=3.0)):
        found, wanted = (torch.stack(next_model.generate(**each, **settings).logits) for each in (given, rest))
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)


def test_image_hidden_in_part_is_refused(model: Any, prompt: Make, pictures: Make) -> None:
    ids = prompt(5, "image", 7)
    mask = torch.ones_like(ids)
    mask[0, 10:20] = 0
    with (
        vitcop_llava.prune(model, METHODS[0]),
        pytest.raises(ValueError, match=r"attention_mask must hide an image whole .* 134 of the 144 .* row 0"),
    ):
        model(input_ids=ids, attention_mask=mask, pixel_values=pictures())
