"""The demo model that the package carries answers questions, and goes on answering when it is pruned."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from vitcop_core import ViTCoP
from vitcop_llava import prune
from vitcop_llava.demo.evaluate import Answerer, Asked, Score, held_out, score
from vitcop_llava.loading import DEMO_FOLDER

SCENES = 24


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(DEMO_FOLDER, "cpu")


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return held_out(SCENES)


def scored(answerer: Answerer, asked: list[Asked], budget: Fraction) -> Score:
    with torch.inference_mode():
        return score(answerer, asked, "ViTCoP", budget, batch=60)


@pytest.fixture(scope="module")
def unpruned(answerer: Answerer, asked: list[Asked]) -> Score:
    return scored(answerer, asked, Fraction(1))


def test_demo_model_answers_held_out_questions(unpruned: Score) -> None:
    assert unpruned.accuracy() >= 0.95


def test_demo_model_keeps_most_answers_at_a_third(answerer: Answerer, asked: list[Asked], unpruned: Score) -> None:
    third = scored(answerer, asked, Fraction(1, 3))
    assert third.average_tokens <= 48
    assert third.accuracy() >= 0.9 * unpruned.accuracy()


@pytest.mark.parametrize("retained", [48, 16])
def test_demo_model_answers_in_a_batch_as_alone(answerer: Answerer, asked: list[Asked], retained: int) -> None:
    few = asked[:12]
    with torch.inference_mode(), prune(answerer.model, ViTCoP(retained_tokens=retained)):
        together = list(answerer.answers(few, batch=12))
        alone = [next(answerer.answers([question], batch=1)) for question in few]
    assert together == alone


def test_demo_model_is_small_and_holds_no_code() -> None:
    files = sorted(path.name for path in DEMO_FOLDER.iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.log"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert sum(path.stat().st_size for path in DEMO_FOLDER.iterdir()) < 16 * 2**20
