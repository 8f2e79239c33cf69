"""Rows of several samples, and rows whose images do not add up, are refused by name; turns count positions alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


def packed(*samples: Tensor) -> dict[str, Tensor]:
    positions = torch.cat([torch.arange(each.shape[1]) for each in samples])[None]
    return {"input_ids": torch.cat(samples, dim=1), "position_ids": positions}


@by_name
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("first", [(5, "image", 7), (9,)], ids=["image", "text"])
def test_packed_samples_are_refused(
    model: Any, prompt: Make, pictures: Make, method: Any, first: Any, use_cache: bool
) -> None:
    row = packed(prompt(*first), prompt(4, "image", 9, seed=2))
    with (
        vitcop_llava.prune(model, method),
        pytest.raises(ValueError, match=r"position_ids must count up in every row, .* give each sample a row"),
    ):
        model(**row, pixel_values=pictures(1 + first.count("image")), use_cache=use_cache)


@by_name
@pytest.mark.parametrize("second", [0, 1, 40], ids=["same", "next", "gap"])
def test_packed_samples_whose_positions_do_not_fall_are_refused(
    model: Any, prompt: Make, pictures: Make, method: Any, second: int
) -> None:
    """transformers takes every step that is not one for a seam, where there is neither a mask nor a cache."""
    ids = torch.cat([torch.full((1, 1), 5), prompt(4, "image", 9)], dim=1)
    positions = torch.cat(
        [torch.zeros(1, 1, dtype=torch.int64), torch.arange(second, ids.shape[1] - 1 + second)[None]], 1
    )
    given = {"input_ids": ids, "position_ids": positions, "pixel_values": pictures()}
    with vitcop_llava.prune(model, method):
        if second == 1:
            assert model(**given, use_cache=False).logits.isfinite().all()
            return
        with pytest.raises(ValueError, match="position_ids must count up"):
            model(**given, use_cache=False)


def test_packed_samples_of_text_are_as_unpruned(model: Any, prompt: Make) -> None:
    row = packed(prompt(5), prompt(9, seed=2))
    wanted = model(**row, use_cache=False).logits
    with vitcop_llava.prune(model, METHODS[0]):
        assert torch.equal(model(**row, use_cache=False).logits, wanted)


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k", "max_length_q"])
def test_seams_of_packed_samples_are_refused(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    ids, seams = prompt(3, "image", 8), 156 if name.startswith("max") else torch.tensor([0, 100, 156])
    with vitcop_llava.prune(model, METHODS[0]), pytest.raises(ValueError, match=f"{name} must be None"):
        model(input_ids=ids, pixel_values=pictures(), **{name: seams})


def test_positions_that_stand_still_in_an_image_are_refused(model: Any, prompt: Make, pictures: Make) -> None:
    ids = prompt(3, "image", 8)
    positions = (ids != 99).cumsum(1)
    with vitcop_llava.prune(model, METHODS[0]), pytest.raises(ValueError, match="position_ids must count up"):
        model(input_ids=ids, pixel_values=pictures(), position_ids=positions)


@pytest.mark.parametrize("start", [0, 40])
def test_positions_from_anywhere_on_are_taken(model: Any, prompt: Make, pictures: Make, start: int) -> None:
    ids = prompt(3, "image", 8)
    with vitcop_llava.prune(model, METHODS[0]):
        wanted = model(input_ids=ids, pixel_values=pictures()).logits
        positions = torch.arange(start, start + ids.shape[1])[None]
        found = model(input_ids=ids, pixel_values=pictures(), position_ids=positions).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)


@by_name
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no-mask"])
def test_placeholders_that_belong_to_another_row_are_refused(
    model: Any, prompt: Make, pictures: Make, method: Any, masked: bool
) -> None:
    ids = torch.cat([prompt(6, "image", 7), prompt(6, "image", 7)])
    ids[0, 20], ids[1, 2] = 5, 99
    given = {"input_ids": ids, "pixel_values": pictures(2)}
    if masked:
        given["attention_mask"] = torch.ones_like(ids)
    with (
        vitcop_llava.prune(model, method),
        pytest.raises(
            ValueError,
            match="whole images in every row, got 143 in row 0",
        ),
    ):
        model(**given)


def test_tile_placeholders_that_belong_to_another_row_are_refused(next_model: Any, next_inputs: Any) -> None:
    given = next_inputs([[3, (96, 96), 5], [3, (96, 96), 5]])
    token = next_model.config.image_token_id
    first, second = ((row == token).nonzero()[:, 0] for row in given["input_ids"])
    given["input_ids"][0, first[4]], given["input_ids"][1, second[0] - 1] = 7, token
    with (
        vitcop_llava.prune(next_model, METHODS[0]),
        pytest.raises(
            ValueError, match="input_ids must hold the placeholders of whole images in every row, got 191 in row 0"
        ),
    ):
        next_model(**given)


@by_name
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_text_turn_then_image_turn_is_one_prompt(
    model: Any, prompt: Make, pictures: Make, pad: Any, method: Any, side: str, outside: bool
) -> None:
    if method.cuts_depend_on_question and side == "right":
        pytest.skip("ranks by what the last token sees of padding between the turns")
    first = pad([prompt(6, seed=3), prompt(2, seed=4)], side=side)
    turn = torch.cat([torch.full((2, 1), 7), torch.full((2, 144), 99), torch.full((2, 3), 8)], dim=1)
    mask, cache = torch.cat([first["attention_mask"], torch.ones_like(turn)], dim=1), DynamicCache()
    if outside:
        model(**first, past_key_values=cache)
    with vitcop_llava.prune(model, method):
        if not outside:
            model(**first, past_key_values=cache)
        second = {"input_ids": turn, "attention_mask": mask, "pixel_values": pictures(2), "past_key_values": cache}
        found = model(**second).logits[:, -1]
        ids = torch.cat([first["input_ids"], turn], dim=1)
        wanted = model(input_ids=ids, attention_mask=mask, pixel_values=pictures(2)).logits[:, -1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)
