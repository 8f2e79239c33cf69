"""LLaVA-NeXT: bad input is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import vitcop_llava
from vitcop_llava import FastV, ViTCoP
from vitcop_llava.tools.media.images import ImageError, read_image

Inputs = Callable[..., dict[str, Any]]
PROMPT: list[list[Any]] = [[2, (96, 96), 3]]


def with_sizes(value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda inputs: {**inputs, "image_sizes": value}


def with_pixels(change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda inputs: {**inputs, "pixel_values": change(inputs["pixel_values"])}


CALLS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], type[Exception], str]] = {
    "no-sizes": (with_sizes(None), ValueError, "image_sizes must be given with pixel_values"),
    "more-sizes": (
        with_sizes(torch.tensor([[96, 96], [96, 96]])),
        ValueError,
        "image_sizes must be as many as the 1 images of pixel_values, got 2",
    ),
    "flat-sizes": (
        with_sizes([96, 96]),
        ValueError,
        "image_sizes must be a height and a width for each image, got 96",
    ),
    "triple": (with_sizes([(96, 96, 3)]), ValueError, "a height and a width for each image, got"),
    "fractions": (with_sizes(torch.tensor([[96.0, 96.0]])), TypeError, "image_sizes must be integers"),
    "side-of-one": (with_sizes([(1, 96)]), ValueError, "image_sizes must be at least 2 pixels, got 1 x 96"),
    "huge": (with_sizes([(10**400, 96)]), ValueError, "image_sizes must be at most 2147483647 pixels, got about 10"),
    "long": (
        with_sizes([(96, 10**5000)]),
        ValueError,
        "image_sizes must be at most 2147483647 pixels, got 96 x about 10",
    ),
    "bool": (with_sizes([(True, 96)]), TypeError, "image_sizes must be integers"),
    "number": (with_sizes(96), TypeError, r"image_sizes must be \[images, 2\], got 96"),
    "text": (with_sizes("9696"), TypeError, r"image_sizes must be \[images, 2\], got '9696'"),
    "zero": (with_sizes([(0, 96)]), ValueError, "image_sizes must be at least 2 pixels, got 0 x 96"),
    "too-few-tiles": (
        with_pixels(lambda pixels: pixels[:, :4]),
        ValueError,
        "pixel_values must have 5 tiles, the base among them, for an image of 96 x 96 pixels, got 4",
    ),
    "flat-tiles": (
        with_pixels(lambda pixels: pixels[0, :4]),
        ValueError,
        r"pixel_values must have 5 tiles for the 1 image_sizes, got 4",
    ),
    "tile-size": (
        with_pixels(lambda pixels: pixels[..., :40, :40]),
        ValueError,
        "pixel_values must be tiles of 48 x 48 pixels",
    ),
    "one-tile": (with_pixels(lambda pixels: pixels[0, 0]), ValueError, "pixel_values must be tiles of 48 x 48"),
    "other-size": (with_sizes([(96, 48)]), ValueError, "input_ids must hold the 120 image placeholders"),
    "no-images": (
        lambda inputs: {name: inputs[name] for name in ("input_ids", "attention_mask")},
        ValueError,
        "pixel_values must be given with the 192 image placeholders .* got None",
    ),
    "zero-images": (
        lambda inputs: {**inputs, "pixel_values": inputs["pixel_values"][:0], "image_sizes": []},
        ValueError,
        "pixel_values must be given with",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_call_is_refused_by_name(next_model: Any, next_inputs: Inputs, budget: Any, case: str) -> None:
    change, error, message = CALLS[case]
    inputs = next_inputs(PROMPT)
    with vitcop_llava.prune(next_model, budget("1/6")):
        wanted = next_model(**inputs).logits
        with pytest.raises(error, match=message):
            next_model(**change(inputs))
        assert torch.equal(next_model(**inputs).logits, wanted)


@pytest.mark.parametrize("form", ["tensor", "lists", "tuples", "tensors", "flat-pixels"])
def test_sizes_and_pixels_come_in_every_form(next_model: Any, next_inputs: Inputs, budget: Any, form: str) -> None:
    inputs = next_inputs([[2, (96, 96), 1, (96, 48), 3]])
    forms: dict[str, Any] = {
        "lists": inputs["image_sizes"].tolist(),
        "tuples": [tuple(size) for size in inputs["image_sizes"].tolist()],
        "tensors": list(inputs["image_sizes"]),
    }
    given = {**inputs, "image_sizes": forms.get(form, inputs["image_sizes"])}
    if form == "flat-pixels":
        given["pixel_values"] = torch.cat([inputs["pixel_values"][0], inputs["pixel_values"][1, :3]])
    with vitcop_llava.prune(next_model, budget("1/6")):
        assert torch.equal(next_model(**given).logits, next_model(**inputs).logits)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_keep_newline_must_be_a_bool(next_model: Any, budget: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="keep_newline must be True or False"):
        vitcop_llava.prune(next_model, budget("1/6"), keep_newline=value)


def test_keep_newline_is_refused_where_there_are_none(model: Any, budget: Any) -> None:
    with pytest.raises(
        ValueError, match="keep_newline must be False for a model without newline tokens, got True for a Llava"
    ):
        vitcop_llava.prune(model, budget(), keep_newline=True)


def test_budget_that_does_not_fit_an_image_names_its_size(next_model: Any, next_inputs: Inputs) -> None:
    inputs = next_inputs([[2, (96, 96), 1, (5, 60), 3]])
    with (
        vitcop_llava.prune(next_model, ViTCoP(retained_tokens=50, cutoff_distance=3.0)),
        pytest.raises(ValueError, match="an image of 60 x 5 pixels with 60 visual tokens: "),
    ):
        next_model(**inputs)


def test_budget_for_small_images_alone_is_met_for_them(next_model: Any, next_inputs: Inputs) -> None:
    # One of eight layers sees every token: 22 of 180 on average for the largest image, 13 of 108 for half of it.
    with vitcop_llava.prune(next_model, FastV(retained_tokens=18)) as pruner:
        next_model(**next_inputs([[2, (96, 48), 3]]))
        assert pruner.report.pruned
        with pytest.raises(ValueError, match="visual tokens: re"):
            next_model(**next_inputs([[2, (96, 96), 3]]))


def test_placeholders_that_are_no_whole_images_are_refused(next_model: Any, next_inputs: Inputs, budget: Any) -> None:
    inputs = next_inputs([[(96, 96), 3], [(96, 48), 200]])
    ids, token = inputs["input_ids"], next_model.config.image_token_id
    places = (ids[1] == token).nonzero()[:, 0]
    ids[1, places[0]] = 5
    ids[0, -1] = token
    with (
        vitcop_llava.prune(next_model, budget("1/6")),
        pytest.raises(ValueError, match="whole images in every row, got 193 in row 0"),
    ):
        next_model(**inputs)


def test_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20000, 20000)).save(path)
    with pytest.raises(ImageError, match=r"at most 40 megapixels, got 20000 x 20000"):
        read_image(path)
