"""Assisted decoding and prompt lookup give greedy's answer, whatever is pruned: the model, its draft, or both."""

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
    ViTCoP(retained_tokens=24, cutoff_distance=3.0, saliency="attention"),
    FastV(retained_tokens=60),
    PyramidDrop(retained_tokens=60),
    SparseVLM(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
]
by_name = pytest.mark.parametrize(
    "method", METHODS, ids=["vitcop", "attention", "fastv", "pyramid", "sparse", "zip", "divprune"]
)
# transformers warns of arguments that it passes to the draft itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def given(prompt: Make, pictures: Make) -> dict[str, Any]:
    words = torch.tensor([[20, 21, 5, 6, 7, 8, 9, 30, 5, 6, 7]])  # repeats itself, to look up
    ids = torch.cat([prompt(8, "image"), words], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(), "do_sample": False}


@by_name
@pytest.mark.parametrize("seed", range(3))
def test_prompt_lookup_is_greedy(build: Any, given: dict[str, Any], method: Any, seed: int) -> None:
    model = build(seed=seed)
    with vitcop_llava.prune(model, method):
        wanted = model.generate(**given, max_new_tokens=8)
        assert torch.equal(model.generate(**given, max_new_tokens=8, prompt_lookup_num_tokens=3), wanted)


@by_name
def test_prompt_lookup_in_tiles_is_greedy(next_model: Any, next_inputs: Any, method: Any) -> None:
    given = next_inputs([[3, (131, 77), 14]])
    with vitcop_llava.prune(next_model, method):
        wanted = next_model.generate(**given, max_new_tokens=6, do_sample=False)
        found = next_model.generate(**given, max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(found, wanted)


@by_name
@pytest.mark.parametrize("pruned", ["model", "draft", "both", "itself"])
def test_assistant_is_greedy(build: Any, given: dict[str, Any], method: Any, pruned: str) -> None:
    model, draft = build(), build(seed=1)
    if pruned == "draft":
        wanted = model.generate(**given, max_new_tokens=6)
        with vitcop_llava.prune(draft, method):
            assert torch.equal(model.generate(**given, max_new_tokens=6, assistant_model=draft), wanted)
        return
    with vitcop_llava.prune(model, method):
        wanted = model.generate(**given, max_new_tokens=6)
        if pruned == "both":
            with vitcop_llava.prune(draft, METHODS[0]):
                found = model.generate(**given, max_new_tokens=6, assistant_model=draft)
        else:
            found = model.generate(**given, max_new_tokens=6, assistant_model=model if pruned == "itself" else draft)
    assert torch.equal(found, wanted)


@by_name
@pytest.mark.parametrize("last", [1, 4, 20, 156])
def test_logits_that_a_call_keeps_do_not_move_its_prompt(
    build: Any, prompt: Make, pictures: Make, method: Any, last: int
) -> None:
    model, ids = build(), prompt(3, "image", 8)
    with vitcop_llava.prune(model, method):
        wanted = model(input_ids=ids, pixel_values=pictures()).logits[:, -last:]
        found = model(input_ids=ids, pixel_values=pictures(), logits_to_keep=last).logits
        with pytest.raises(TypeError):
            model(ids, pictures(), logits_to_keep=5, input_ids=ids)
        again = model(input_ids=ids, pixel_values=pictures()).logits[:, -last:]
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)
    assert torch.equal(again, wanted)


@by_name
@pytest.mark.parametrize("last", [1, 4])
def test_logits_that_generate_keeps_do_not_move_its_prompt(
    build: Any, given: dict[str, Any], method: Any, last: int
) -> None:
    """Nor those that a processor of logits asks for, be there candidates or not."""
    model, asked = build(), list[Tensor]()
    inputs = {name: value for name, value in given.items() if name != "do_sample"}

    def ask(ids: Tensor, scores: Tensor) -> Tensor:
        asked.append(model(**inputs, logits_to_keep=last).logits[:, -1])
        return scores

    with vitcop_llava.prune(model, method):
        wanted, logits = model.generate(**given, max_new_tokens=4), model(**inputs).logits[:, -1]
        assert torch.equal(model.generate(**given, max_new_tokens=4, logits_to_keep=last), wanted)
        for more in ({}, {"prompt_lookup_num_tokens": 3}):
            assert torch.equal(model.generate(**given, **more, max_new_tokens=4, logits_processor=[ask]), wanted)
    assert len(asked) > 4
    for found in asked:
        torch.testing.assert_close(found, logits, rtol=0, atol=5e-6)


def test_draft_without_pruning_needs_its_images_elsewhere(build: Any, prompt: Make, budget: Any) -> None:
    """Outside of drafting, a prompt without its image is still refused."""
    model, ids = build(), prompt(3, "image", 8)
    with (
        vitcop_llava.prune(model, budget()),
        pytest.raises(ValueError, match="pixel_values must be given with the 144"),
    ):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
