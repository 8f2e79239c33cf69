"""The statistics of an analysis, against loops that say what they mean."""

import importlib
import math

import numpy as np
import pytest

from vitcop_llava.tools.analysis.statistics import (
    Floats,
    average_ranks,
    cumulative_share,
    effective_share,
    kept_attention,
    rank_correlation,
)


def values(seed: int, layers: int, tokens: int, levels: int = 0) -> Floats:
    """Random numbers above 0; with ``levels`` of so many values, and so with ties."""
    rng = np.random.default_rng(seed)
    found: Floats = (
        rng.integers(1, levels + 1, (layers, tokens)) / 4 if levels else rng.exponential(size=(layers, tokens))
    )
    return found


def naive_rank(row: Floats, value: float) -> float:
    below, equal = sum(other < value for other in row), sum(other == value for other in row)
    return float(below + (equal + 1) / 2)


def naive_correlation(first: list[float], second: list[float]) -> float:
    means = sum(first) / len(first), sum(second) / len(second)
    products = sum((a - means[0]) * (b - means[1]) for a, b in zip(first, second, strict=True))
    squares = sum((a - means[0]) ** 2 for a in first) * sum((b - means[1]) ** 2 for b in second)
    return products / math.sqrt(squares)


@pytest.mark.parametrize("levels", [0, 3])
def test_rank_correlation_is_that_of_average_ranks(levels: int) -> None:
    first, second = values(1, 4, 25, levels), values(2, 4, 25, levels)
    for found, left, right in zip(rank_correlation(first, second), first, second, strict=True):
        ranks = [[naive_rank(row, value) for value in row] for row in (left, right)]
        assert average_ranks(left).tolist() == ranks[0]
        assert found == pytest.approx(naive_correlation(*ranks))


def test_rank_correlation_sees_order_alone() -> None:
    first = values(3, 2, 30)
    assert rank_correlation(first, first**3) == pytest.approx([1, 1])
    assert rank_correlation(first, 1 / first) == pytest.approx([-1, -1])
    # Without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    assert rank_correlation([[1, 2, 3, 4, 5]], [[5, 6, 7, 8, 7.5]]) == pytest.approx([1 - 6 * 2 / 120])


def test_rank_correlation_of_what_ranks_nothing_is_zero() -> None:
    assert rank_correlation([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]).tolist() == [0, 1]


def test_cumulative_share_counts_whole_tokens_and_goes_straight_between() -> None:
    curve = cumulative_share([1.0, 6.0, 0.0, 3.0])
    assert curve[[0, 25, 50, 75, 100]] == pytest.approx([0, 0.6, 0.9, 1, 1])
    assert curve[10] == pytest.approx(0.6 * 10 / 25)
    assert cumulative_share(np.ones(7)) == pytest.approx(np.linspace(0, 1, 101))


def test_effective_share_is_the_exponential_of_the_entropy() -> None:
    attention = values(4, 3, 11)
    for found, row in zip(effective_share(attention), attention, strict=True):
        shares = [value / sum(row) for value in row]
        assert found == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)) / 11)
    extremes = [[1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert effective_share(extremes) == pytest.approx([1, 1 / 4, 1 / 2, 0])


def test_kept_attention_is_what_the_first_tokens_hold() -> None:
    attention, norms = values(5, 4, 20), values(6, 4, 20, levels=4)
    for found, row, order in zip(kept_attention(attention, norms, 6), attention, norms, strict=True):
        first = sorted(range(20), key=lambda token: (order[token], token))[:6]
        assert found == pytest.approx(sum(row[token] for token in first) / sum(row))
    assert kept_attention([[0.0, 0.0]], [[1.0, 2.0]], 1).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cumulative_share([]), "attention must be"),
        (lambda: cumulative_share([0.0, 0.0]), "attention must be"),
        (lambda: cumulative_share([[1.0]]), r"attention must be of shape \[n\]"),
        (lambda: rank_correlation([[1.0]], [[1.0, 2.0]]), "first, second must be of one shape"),
        (lambda: rank_correlation([1.0], [1.0]), "first, second must be of one shape"),
    ],
)
def test_statistics_name_bad_input(call: object, said: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=said):
        call()


def test_former_place_of_the_analysis_warns_and_works() -> None:
    with pytest.warns(DeprecationWarning, match="will go: import vitcop_llava.tools.analysis"):
        former = importlib.reload(importlib.import_module("vitcop_llava.analysis"))
    assert former.judge is importlib.import_module("vitcop_llava.tools.analysis").judge
