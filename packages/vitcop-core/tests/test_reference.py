"""The vectorised references against loops that restate Algorithms 2 and 3, with ties and degenerate inputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitcop_core import ops
from vitcop_core.ops._quotas import rounded_quotas, top_up_quotas

Array = NDArray[Any]


@st.composite
def token_sets(draw: st.DrawFn) -> tuple[Array, Array, int, float, float]:
    """Features, positions on a grid, centers, cutoff and threshold: random, or on a lattice full of ties."""
    tokens, width = draw(st.integers(1, 24)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0, 1, 3]))
    features = generator.integers(-spread, spread + 1, (tokens, width)) * 2.0
    if draw(st.booleans()):
        features = generator.normal(0, 4, (tokens, width))
    cells = generator.permutation(36)[:tokens]
    positions = np.stack([cells // 6, cells % 6], 1) / 6
    centers = draw(st.integers(1, tokens))
    threshold = draw(st.sampled_from([0.05, 1 / 6, 0.3, 0.6, 2.0]))
    return features.astype(np.float32), positions, centers, draw(st.sampled_from([0.5, 3.0, 8.0])), threshold


@settings(max_examples=150, deadline=None)
@given(case=token_sets())
def test_vic_matches_algorithm_2(slow_vic: Callable[..., tuple[Array, ...]], case: Any) -> None:
    features, positions, centers, cutoff, threshold = case
    found = ops.vic(
        torch.from_numpy(features)[None],
        torch.from_numpy(positions).float()[None],
        centers,
        cutoff_distance=cutoff,
        spatial_threshold=threshold,
    )
    expected = slow_vic(features.astype(np.float64), positions, centers, cutoff, threshold)
    np.testing.assert_array_equal(found.labels[0], expected[0])
    np.testing.assert_array_equal(found.centers[0], expected[1])
    np.testing.assert_allclose(found.density[0], expected[2], rtol=1e-6, atol=1e-12)
    # Distances come of products of features in float64: their squares are exact to rounding of the features' squares.
    rounding = 1e-14 * np.square(features.astype(np.float64)).sum(1).max()
    for mine, theirs, scale in ((found.distance, expected[3], 1), (found.importance, expected[4], len(features))):
        squares = np.square(mine[0].double().numpy())
        np.testing.assert_allclose(squares, np.square(theirs), rtol=2e-6, atol=rounding * scale**2 + 1e-24)


def test_distances_of_tokens_that_are_almost_the_same(slow_vic: Callable[..., tuple[Array, ...]]) -> None:
    features = np.array([[3.36586], [3.3658357], [8.226811], [-6.55377]], dtype=np.float32)
    positions = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
    found = ops.vic(
        torch.from_numpy(features)[None],
        torch.from_numpy(positions).float()[None],
        1,
        cutoff_distance=0.5,
        spatial_threshold=2.0,
    )
    labels, centers, _, distance, _ = slow_vic(features.astype(np.float64), positions, 1, 0.5, 2.0)
    assert found.labels[0].tolist() == list(labels)
    assert found.centers[0].tolist() == list(centers)
    np.testing.assert_allclose(found.distance[0], distance, rtol=1e-5)


@st.composite
def clustered_rows(draw: st.DrawFn) -> tuple[list[int], Array, int]:
    """Labels, norms with ties, and a budget from one token to more than there are."""
    tokens = draw(st.integers(1, 30))
    clusters = draw(st.integers(1, tokens))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    skew = draw(st.sampled_from([0.3, 1.0, 5.0]))
    labels = np.floor(clusters * generator.random(tokens) ** skew).astype(int)
    norms = generator.integers(1, draw(st.sampled_from([2, 5, 1000])), tokens) / 8
    return [int(label) for label in labels], norms, draw(st.integers(1, tokens + 2))


@settings(max_examples=300, deadline=None)
@given(case=clustered_rows())
def test_co_prune_matches_algorithm_3(slow_co_prune: Callable[..., Any], case: tuple[list[int], Array, int]) -> None:
    labels, norms, budget = case
    hidden = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    found = ops.co_prune(
        torch.from_numpy(hidden)[None],
        torch.tensor([labels]),
        torch.from_numpy(norms).float()[None],
        budget,
        max(labels) + 2,
    )
    assert found.hidden is not None
    assert found.is_merged is not None
    assert found.slot is not None
    index, merged, is_merged, slot = slow_co_prune(hidden.astype(np.float64), labels, norms, budget)
    kept = len(index)
    assert kept == min(budget, len(labels))
    assert found.index[0].tolist() == index + [len(labels)] * (budget - kept)
    assert found.is_merged[0].tolist() == is_merged + [False] * (budget - kept)
    assert found.slot[0].tolist() == slot
    np.testing.assert_allclose(found.hidden[0, :kept], merged, rtol=1e-6, atol=1e-6)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_quotas_fill_the_budget_and_leave_one_to_merge(sizes: list[int], share: float, seed: int) -> None:
    sizes[0] = max(sizes[0], 1)
    most = sum(max(size - 1, 0) for size in sizes)
    elites = torch.tensor([[round(share * most)]])
    norms = torch.rand(1, len(sizes), generator=torch.Generator().manual_seed(seed))
    table = torch.tensor([sizes])
    for rule in (top_up_quotas, rounded_quotas):
        quotas = rule(table, elites, norms)
        assert quotas.sum() == elites
        assert (quotas >= 0).all()
        assert (quotas <= (table - 1).clamp(min=0)).all()


def test_rounded_quotas_take_back_from_the_largest_sum_and_give_to_the_smallest() -> None:
    sums = torch.tensor([[3.0, 1.0, 2.0]])
    # Shares of 1.5 each round to 2, and 6 is one more than there are.
    assert rounded_quotas(torch.tensor([[4, 4, 4]]), torch.tensor([[5]]), sums).tolist() == [[1, 2, 2]]
    # Shares of 1.33 each round to 1, and 3 is one less.
    assert rounded_quotas(torch.tensor([[4, 4, 4]]), torch.tensor([[4]]), sums).tolist() == [[1, 2, 1]]
    # Halves round to even: 0.5 to 0.
    assert rounded_quotas(torch.tensor([[2, 2]]), torch.tensor([[1]]), sums[:, :2]).tolist() == [[0, 1]]
