"""Prefixes of LLaVA-NeXT: images of any shape, with and without their newline tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitcop_llava
from vitcop_llava import ImagePrefix

Inputs = Callable[..., dict[str, Any]]
QUESTIONS = [[5, 6, 7, 8], [9], [10, 11]]
HOW: dict[str, Any] = {
    "max_new_tokens": 4,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@pytest.mark.parametrize("keep_newline", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize(
    "parts", [[2, (96, 96)], [(10, 90), 3], [1, (131, 77), 2, (48, 144)]], ids=["square", "wide", "two"]
)
def test_answers_equal_asking_each_from_scratch(
    next_model: Any, next_inputs: Inputs, budget: Any, tmp_path: Path, parts: list[Any], keep_newline: bool
) -> None:
    beginning, path = next_inputs([parts]), tmp_path / "image.safetensors"
    with vitcop_llava.prune(next_model, budget("1/3"), keep_newline=keep_newline):
        prefix = vitcop_llava.encode_image(next_model, **beginning)
        prefix.save(path)
        loaded = ImagePrefix.load(path, next_model)
        assert str(loaded.report) == str(prefix.report)
        for which in (prefix, loaded):
            logits = torch.stack(next_model.generate(**which.inputs(QUESTIONS), **HOW).logits, 1)
            for row, question in enumerate(QUESTIONS):
                ids = torch.cat([beginning["input_ids"], torch.tensor([question])], dim=1)
                whole = {**beginning, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
                alone = torch.cat(next_model.generate(**whole, **HOW).logits)
                torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=0)


def test_newlines_that_differ_are_refused(next_model: Any, next_inputs: Inputs, budget: Any, tmp_path: Path) -> None:
    with vitcop_llava.prune(next_model, budget("1/3"), keep_newline=True):
        vitcop_llava.encode_image(next_model, **next_inputs([[(96, 96)]])).save(tmp_path / "image.safetensors")
    with pytest.raises(ValueError, match=r"method \.\.\..*\) with keep_newline=True instead of \.\.\..*\)"):
        ImagePrefix.load(tmp_path / "image.safetensors", next_model, budget("1/3"))
