"""The demo model that the package carries answers questions, and goes on answering when it is pruned."""

from __future__ import annotations

from fractions import Fraction

import pytest

from vitcop_core import ViTCoP
from vitcop_llava.tools.comparison.answers import Answered, Asker
from vitcop_llava.tools.comparison.costs import CostCounter
from vitcop_llava.tools.comparison.questions import Item, demo_questions
from vitcop_llava.tools.comparison.result import Results
from vitcop_llava.tools.comparison.variants import UNPRUNED, Variant, at_budgets
from vitcop_llava.tools.model.loading import DEMO_FOLDER, Loaded, load

QUESTIONS = 120
THIRD, TOKENS_48, TOKENS_16 = at_budgets(
    {"ViTCoP": ViTCoP(retained_tokens=1)},
    {"1/3": {"retention_ratio": Fraction(1, 3)}, "48": {"retained_tokens": 48}, "16": {"retained_tokens": 16}},
)


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return load(device="cpu")


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    return demo_questions(QUESTIONS).items


def said(demo: Loaded, items: tuple[Item, ...], variant: Variant) -> list[str]:
    answered = Asker(demo, [variant], 4).answer(items)
    return [each.said[variant.name] for each in answered if isinstance(each, Answered)]


@pytest.fixture(scope="module")
def results(demo: Loaded, items: tuple[Item, ...]) -> Results:
    found = Results([UNPRUNED, THIRD], {})
    found.add(Asker(demo, [UNPRUNED, THIRD], 4).answer(items))
    return found


def test_demo_model_answers_held_out_questions(results: Results) -> None:
    assert sum(results.right(UNPRUNED)) >= 0.95 * QUESTIONS


def test_demo_model_keeps_most_answers_at_a_third(demo: Loaded, results: Results) -> None:
    cost = CostCounter(THIRD.method, demo.parts, 4).mean([(each.sizes, each.text_tokens) for each in results.answered])
    assert cost.tokens <= 48
    assert sum(results.right(THIRD)) >= 0.9 * sum(results.right(UNPRUNED))


@pytest.mark.parametrize("variant", [TOKENS_48, TOKENS_16], ids=lambda variant: variant.retain)
def test_demo_model_answers_in_a_batch_as_alone(demo: Loaded, items: tuple[Item, ...], variant: Variant) -> None:
    few = items[:12]
    assert said(demo, few, variant) == [answer for item in few for answer in said(demo, (item,), variant)]


def test_demo_model_is_small_and_holds_no_code() -> None:
    files = sorted(path.name for path in DEMO_FOLDER.iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.log"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert sum(path.stat().st_size for path in DEMO_FOLDER.iterdir()) < 16 * 2**20
