"""What makes no prefix, and what cannot follow one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_core import ViTCoP
from vitcop_llava import ImagePrefix

Make = Callable[..., Tensor]


@pytest.fixture
def prefix(model: Any, prompt: Make, pictures: Make, budget: Any) -> ImagePrefix:
    return vitcop_llava.encode_image(model, prompt(3, "image"), pictures(), method=budget())


@dataclass(frozen=True)
class OtherMethod(ViTCoP):
    """A method that says nothing of what its cuts depend on but the base class's word."""

    @property
    def cuts_depend_on_question(self) -> bool:
        return super(ViTCoP, self).cuts_depend_on_question


def test_methods_say_whether_their_cuts_depend_on_the_question(budget: Any) -> None:
    assert not budget().cuts_depend_on_question
    assert not budget(compat="official").cuts_depend_on_question
    assert budget(saliency="attention").cuts_depend_on_question
    assert OtherMethod(retained_tokens=16).cuts_depend_on_question


@pytest.mark.parametrize(
    "method",
    [ViTCoP(retained_tokens=16, saliency="attention"), OtherMethod(retained_tokens=16)],
    ids=["attention", "other"],
)
def test_method_whose_cuts_depend_on_the_question_is_refused(
    model: Any, prompt: Make, pictures: Make, method: ViTCoP
) -> None:
    with pytest.raises(ValueError, match=r"look at the image alone, got .* depends on the question"):
        vitcop_llava.encode_image(model, prompt(3, "image"), pictures(), method=method)
    with (
        vitcop_llava.prune(model, method),
        pytest.raises(ValueError, match="look at the image alone"),
    ):
        vitcop_llava.encode_image(model, prompt(3, "image"), pictures())


@pytest.mark.parametrize("settings", [{"compat": "official"}, {"deep_positions": "reindexed"}], ids=str)
def test_method_that_moves_the_question_is_refused(
    model: Any, prompt: Make, pictures: Make, budget: Any, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"method must leave tokens at their positions, .* use deep_positions='kept'"):
        vitcop_llava.encode_image(model, prompt(3, "image"), pictures(), method=budget(**settings))


def test_method_has_to_be_the_models(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    given = (model, prompt(3, "image"), pictures())
    with pytest.raises(ValueError, match="method must be given where the model is not being pruned"):
        vitcop_llava.encode_image(*given)
    with pytest.raises(TypeError, match="method must be a method"):
        vitcop_llava.encode_image(*given, method="ViTCoP")  # type: ignore[arg-type]
    with vitcop_llava.prune(model, budget()):
        vitcop_llava.encode_image(*given, method=budget())
        with pytest.raises(ValueError, match="method must be what the model is being pruned with"):
            vitcop_llava.encode_image(*given, method=budget("1/3"))
    with pytest.raises(ValueError, match="method must be given"):
        vitcop_llava.encode_image(*given)


def test_prompt_without_an_image_is_refused(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with pytest.raises(ValueError, match=r"input_ids must hold the placeholders of an image \(token 99\), got none"):
        vitcop_llava.encode_image(model, prompt(200), pictures(), method=budget())


def test_prompt_and_images_that_disagree_are_refused(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with pytest.raises(ValueError, match=r"input_ids must hold .* placeholders for the 2 images"):
        vitcop_llava.encode_image(model, prompt(3, "image"), pictures(2), method=budget())
    assert not model.model._forward_pre_hooks
    with pytest.raises(ValueError, match=r"[Ii]mage features and image tokens do not match"):
        vitcop_llava.encode_image(model, prompt(3, "image", "image"), pictures(1), method=budget())


@pytest.mark.parametrize("pixels", [None, 0.5, "image.png", [[0.0]]], ids=str)
def test_pictures_that_are_no_tensor_are_refused(model: Any, prompt: Make, budget: Any, pixels: Any) -> None:
    with pytest.raises(TypeError, match="pixel_values must be a tensor, got"):
        vitcop_llava.encode_image(model, prompt(3, "image"), pixels, method=budget())


def test_prompt_of_several_rows_or_with_padding_is_refused(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    ids = prompt(3, "image")
    with pytest.raises(ValueError, match=r"input_ids must be one row, \[1, length\], got shape \(2, 148\)"):
        vitcop_llava.encode_image(model, ids.expand(2, -1), pictures(2), method=budget())
    with pytest.raises(ValueError, match=r"input_ids must be one row, .* got shape \(148,\)"):
        vitcop_llava.encode_image(model, ids[0], pictures(), method=budget())
    with pytest.raises(TypeError, match=r"input_ids must be an int64 tensor, got torch\.float32"):
        vitcop_llava.encode_image(model, ids.float(), pictures(), method=budget())
    mask = torch.ones_like(ids)
    vitcop_llava.encode_image(model, ids, pictures(), attention_mask=mask, method=budget())
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="attention_mask must be all ones"):
        vitcop_llava.encode_image(model, ids, pictures(), attention_mask=mask, method=budget())


@pytest.mark.parametrize(
    ("questions", "error", "message"),
    [
        ([], ValueError, "must hold at least one question"),
        ([[5], []], ValueError, r"\[1\] must hold at least one token"),
        ([5, 6], TypeError, "a list of token ids for each question, got int"),
        (["What?"], TypeError, "got str"),
        ([[5.0]], TypeError, "got list"),
        ([[[5]]], TypeError, "got list"),
        ([torch.ones(2, 3, dtype=torch.int64)], TypeError, r"got a tensor of shape \(2, 3\)"),
        ([torch.ones(3)], TypeError, "got a tensor"),
    ],
    ids=["none", "empty", "flat", "text", "floats", "nested", "matrix", "float-tensor"],
)
def test_question_that_is_none_is_refused(
    prefix: ImagePrefix, questions: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"questions.*{message}"):
        prefix.inputs(questions)


def test_prompt_that_begins_otherwise_is_refused(prefix: ImagePrefix) -> None:
    row = prefix.input_ids[0].tolist()
    with pytest.raises(
        ValueError, match=r"questions\[0\] must begin with the tokens of the prefix, got another at token 2"
    ):
        prefix.inputs([[*row[:2], 98 if row[2] != 98 else 97, *row[3:], 5]])
    with pytest.raises(ValueError, match=r"questions\[1\] must begin with"):
        prefix.inputs([[5], [99, 5]])
    with pytest.raises(ValueError, match=r"questions\[0\] must begin with .* got another at token 4"):
        prefix.inputs([[*row[:4], 5, 99]])
    with pytest.raises(ValueError, match=r"questions\[0\] must hold at least one token after the prefix"):
        prefix.inputs([row])
    with pytest.raises(ValueError, match=r"questions\[0\] must not hold an image beside the prefix's"):
        prefix.inputs([[*row, 5, 99, 6]])


@pytest.mark.parametrize("token", [10**400, 2**63, 100, -1, -(2**70)], ids=["huge", "long", "next", "negative", "low"])
def test_id_outside_the_vocabulary_is_refused(prefix: ImagePrefix, token: int) -> None:
    with pytest.raises(ValueError, match="pad_token_id must be ids from 0 to 99, got "):
        prefix.inputs([[5], [5, 6]], pad_token_id=token)
    with pytest.raises(ValueError, match="questions must be ids from 0 to 99, got "):
        prefix.inputs([[5, token], [6]])


@pytest.mark.parametrize("token", [None, True, 1.0, "0"])
def test_padding_that_is_no_id_is_refused(prefix: ImagePrefix, token: Any) -> None:
    with pytest.raises(TypeError, match="pad_token_id must be a token id, got "):
        prefix.inputs([[5]], pad_token_id=token)
