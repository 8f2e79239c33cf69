"""What is said of accuracies: intervals against theory and a naive loop, and pairing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitcop_llava.tools.comparison.matching import is_right, normalize
from vitcop_llava.tools.comparison.statistics import CONFIDENCE, RESAMPLES, Estimate, estimate


def answers(count: int, share: float, seed: int) -> list[bool]:
    return [bool(was) for was in np.random.default_rng(seed).random(count) < share]


def width(found: Estimate | None) -> float:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_interval_of_independent_questions_is_the_binomial_one() -> None:
    right = answers(900, 0.8, 0)
    found = estimate({"one": right}, range(900), "one")["one"].accuracy
    share = sum(right) / 900
    assert found.value == share
    assert found.low is not None
    assert found.low < share
    assert width(found) == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 900), rel=0.05)


def test_questions_about_one_image_are_no_independent_trials() -> None:
    right = answers(60, 0.7, 1)
    alone = estimate({"one": right}, range(60), "one")["one"]
    fivefold = [was for was in right for _ in range(5)]
    together = estimate({"one": fivefold}, [image for image in range(60) for _ in range(5)], "one")["one"]
    assert together == alone


def test_resampling_equals_a_loop_over_images() -> None:
    groups = [0, 0, 0, 1, 2, 2, 3]
    right = {"base": [True] * 6 + [False], "less": [True, False, True, True, False, False, True]}
    rng, drawn = np.random.default_rng(5), []
    for weights in np.concatenate([rng.multinomial(4, np.full(4, 1 / 4), size=500) for _ in range(RESAMPLES // 500)]):
        often = [int(weights[group]) for group in groups]
        base, less = (sum(n * was for n, was in zip(often, right[name], strict=True)) for name in ("base", "less"))
        if base:
            drawn.append(less / base)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    assert estimate(right, groups, "base", seed=5)["less"].kept == Estimate(4 / 6, low, high)


def test_same_answers_differ_by_nothing() -> None:
    right = answers(100, 0.6, 2)
    found = estimate({"base": right, "same": list(right)}, range(100), "base")["same"]
    assert found.difference == Estimate(0.0, 0.0, 0.0)
    assert found.kept == Estimate(1.0, 1.0, 1.0)


def test_pairing_narrows_the_difference() -> None:
    base = answers(400, 0.7, 3)
    less = [was and place % 20 > 0 for place, was in enumerate(base)]
    found = estimate({"base": base, "less": less}, range(400), "base")["less"]
    assert width(found.difference) < 0.6 * width(found.accuracy)
    assert found.difference.value == pytest.approx((sum(less) - sum(base)) / 400)


def test_intervals_need_two_images_and_a_right_answer() -> None:
    found = estimate({"base": [True, False], "other": [False, False]}, ["a", "a"], "base")
    assert found["base"].accuracy == Estimate(0.5, None, None)
    assert found["other"].kept == Estimate(0.0, None, None)
    assert estimate({"base": [False, False]}, ["a", "b"], "base")["base"].kept is None


def test_seed_decides_the_intervals() -> None:
    right = {"base": answers(997, 0.5, 4)}
    first, again, other = (estimate(right, [n // 3 for n in range(997)], "base", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("right", "groups", "said"),
    [({"a": []}, [], "groups must hold at least one question"), ({"a": [True]}, [1, 2], "right must have an answer")],
)
def test_estimate_names_a_mistake(right: dict[str, list[bool]], groups: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        estimate(right, groups, "a")


@pytest.mark.parametrize(
    ("said", "accepted", "expected"),
    [
        ("red", ["red"], True),
        (" Red.\n", ["red"], True),
        ("top  left", ["Top left!"], True),
        ("ＲＥＤ", ["red"], True),
        ("straße", ["STRASSE"], True),
        ("two", ["2", "two"], True),
        ("two", ["2"], False),
        ("reddish", ["red"], False),
        ("it is red", ["red"], False),
        ("U.S.", ["us"], False),
        ("", ["red"], False),
    ],
)
def test_answers_match_after_normalising(said: str, accepted: list[str], expected: bool) -> None:
    assert is_right(said, accepted) is expected
    assert normalize(normalize(said)) == normalize(said)
