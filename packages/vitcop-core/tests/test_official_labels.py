"""The clusters of ``compat="official"`` against loops that restate the released rules pass by pass."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vitcop_core.methods.official import official_vic

Array = NDArray[Any]
KINDS = ("scattered", "lattice", "duplicates", "line")
SEEDS = range(100)


class Case(NamedTuple):
    features: Array
    positions: Array
    centers: int
    cutoff: float
    threshold: float

    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.features)[None], torch.from_numpy(self.positions).float()[None]


def make_features(kind: str, tokens: int, generator: np.random.Generator) -> Array:
    width = int(generator.integers(1, 5))
    if kind == "scattered":
        return generator.normal(0, 4, (tokens, width))
    if kind == "lattice":
        return 2.0 * generator.integers(-2, 3, (tokens, width))
    if kind == "duplicates":
        return generator.normal(0, 4, (tokens // 2, width))[generator.integers(0, tokens // 2, tokens)]
    # Evenly spaced: as many to the left of one token as to the right of another, and so densities come in pairs.
    return 3.0 * generator.permutation(tokens)[:, None]


def make_case(kind: str, seed: int) -> Case:
    """Few centers for 3 to 45 tokens, most of which have no neighbor where the threshold is small."""
    generator = np.random.default_rng((KINDS.index(kind), seed))
    tokens = int(generator.integers(3, 46))
    features = make_features(kind, tokens, generator)
    cells = generator.permutation(24 * 24)[:tokens]
    # Positions repeat every twelve tokens in half of the cases, so that neighbors are many at any threshold.
    cells = cells[np.arange(tokens) % 12] if seed % 2 else cells
    positions = np.stack([cells // 24, cells % 24], 1) / 24
    centers = int(generator.integers(1, max(2, tokens // 5)))
    cutoff, threshold = generator.choice([0.5, 3.0, 8.0]), generator.choice([0.05, 0.1, 0.2, 0.6])
    return Case(features.astype(np.float32), positions, centers, float(cutoff), float(threshold))


def released_parents(case: Case) -> tuple[list[int], list[float]]:
    """The parent of each token, 0 where it has none, and its importance.

    Computed in float64; densities, distances and their product are compared as the float32 they round to.
    """
    wide, places, tokens = case.features.tolist(), case.positions.tolist(), range(len(case.features))
    exact = [[math.sqrt(math.dist(a, b) ** 2 + 1e-8) for b in wide] for a in wide]
    for i in tokens:
        exact[i][i] = 0.0
    density = [np.float32(math.fsum(math.exp(-((d / case.cutoff) ** 2)) for d in row)) for row in exact]
    parents, importance = [], []
    for i in tokens:
        parent, delta = 0, np.float32(math.inf)
        for j in tokens:
            apart = math.sqrt(math.dist(places[i], places[j]) ** 2 + 1e-8)
            is_candidate = j != i and density[j] >= density[i] and apart <= case.threshold
            if is_candidate and np.float32(exact[i][j]) < delta:
                parent, delta = j, np.float32(exact[i][j])
        parents.append(parent)
        importance.append(float(density[i] * delta))
    return parents, importance


def spread_labels(parents: list[int], centers: list[int]) -> list[int]:
    """Pass over all tokens, each without a label taking its parent's, until a pass changes nothing."""
    labels = [-1] * len(parents)
    for label, center in enumerate(centers):
        labels[center] = label
    while True:
        spread = [labels[parents[i]] if label < 0 else label for i, label in enumerate(labels)]
        if spread == labels:
            return labels
        labels = spread


@pytest.mark.parametrize("kind", KINDS)
def test_official_labels_match_the_released_passes(kind: str) -> None:
    crowded = unlabeled = 0
    for seed in SEEDS:
        case = make_case(kind, seed)
        parents, importance = released_parents(case)
        # The released sort may order equal values in any way; a stable one is one of them.
        centers = sorted(range(len(parents)), key=lambda i: -importance[i])[: case.centers]
        expected = spread_labels(parents, centers)
        found = official_vic(*case.tensors(), case.centers, case.cutoff, case.threshold)
        assert found.centers[0].tolist() == centers, f"{seed=}"
        assert found.labels[0].tolist() == expected, f"{seed=}"
        np.testing.assert_allclose(found.importance[0], importance, rtol=1e-6, err_msg=f"{seed=}")
        crowded += sum(map(math.isinf, importance)) > case.centers
        unlabeled += -1 in expected
    # The cases are such as the rules are about.
    assert crowded >= len(SEEDS) // 4
    assert unlabeled >= len(SEEDS) // 4


NEAR, FAR, FARTHER = [0.0, 0.0], [5.0, 0.0], [0.0, 5.0]
CHAINS = {
    # Tokens 1 to 3 have no parent, and only two of them are centers. Token 3 follows token 0, the least dense, whose
    # parent is token 1.
    "token 0 for a missing parent": ([9, 0, 1, 2], [NEAR, NEAR, FAR, FARTHER], 2, [0, 0, 1, 0]),
    # Tokens 0 and 1 are equally dense. Token 0 is near token 1 alone, and token 1 nearest to token 2, the center.
    "a parent of equal density and higher index": ([-1, 1, 0], [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]], 1, [0, 0, 0]),
    # Tokens 0 and 1 are duplicates and densest, each the other's parent. Token 2 hangs on them.
    "into a cycle": ([0, 0, 1, 50], [NEAR] * 4, 1, [-1, -1, -1, 0]),
    # The same tokens, and centers enough for one of the two.
    "a center in a cycle": ([0, 0, 1, 50], [NEAR] * 4, 3, [2, 2, 1, 0]),
    # Token 2 has no parent, and token 0, which stands in, has token 2 for its own. The center is token 1.
    "a cycle through token 0": ([3, 1, 0], [NEAR, FAR, NEAR], 1, [-1, 0, -1]),
    # Token 4 has no parent, and token 0 hangs on a cycle. The center is token 3.
    "token 0 into a cycle": ([3, 0, 0, 1, 1], [NEAR, NEAR, NEAR, FAR, FARTHER], 1, [-1, -1, -1, 0, -1]),
}


@pytest.mark.parametrize(("features", "positions", "centers", "labels"), CHAINS.values(), ids=CHAINS)
def test_official_chains_are_followed_to_their_end(
    features: list[float], positions: list[list[float]], centers: int, labels: list[int]
) -> None:
    found = official_vic(torch.tensor(features).float().view(1, -1, 1), torch.tensor([positions]), centers, 8.0, 0.6)
    assert found.labels[0].tolist() == labels


@pytest.mark.parametrize("tokens", [2, 3, 4, 5, 8, 9, 16, 17, 45])
def test_official_chain_of_any_length_reaches_its_center(tokens: int) -> None:
    # Duplicates, each near its two neighbors in a row: the parent is the one before, and token 0 is the center.
    positions = torch.stack([torch.arange(tokens) / 2, torch.zeros(tokens)], 1)[None]
    found = official_vic(torch.ones(1, tokens, 3), positions, 1, 8.0, 0.6)
    assert found.centers.tolist() == [[0]]
    assert (found.labels == 0).all()


def test_official_rows_of_a_batch_equal_rows_alone(pad_rows: Callable[[list[Tensor], float], Tensor]) -> None:
    cases = [make_case(kind, seed) for kind in KINDS for seed in range(25)]
    cases = [case._replace(features=case.features[:, :1], cutoff=3.0, threshold=0.1) for case in cases]
    features, positions = zip(*(case.tensors() for case in cases), strict=True)
    lengths = torch.tensor([len(case.features) for case in cases])
    counts = torch.tensor([case.centers for case in cases])
    together = official_vic(
        pad_rows([row[0] for row in features], 1.0),
        pad_rows([row[0] for row in positions], 0.5),
        int(counts.max()),
        3.0,
        0.1,
        lengths=lengths,
        counts=counts,
    )
    for row, case in enumerate(cases):
        alone, tokens = official_vic(*case.tensors(), case.centers, 3.0, 0.1), len(case.features)
        assert torch.equal(together.labels[row, :tokens], alone.labels[0])
        assert torch.equal(together.centers[row, : case.centers], alone.centers[0])
        torch.testing.assert_close(together.importance[row, :tokens], alone.importance[0], rtol=1e-6, atol=0)
        assert (together.labels[row, tokens:] == -1).all()
        assert (together.centers[row, case.centers :] == int(lengths.max())).all()


@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
def test_official_shapes_need_no_values(ragged: bool) -> None:
    with FakeTensorMode():
        rows = torch.empty(2, dtype=torch.int64) if ragged else None
        found = official_vic(torch.empty(2, 9, 4), torch.empty(2, 9, 2), 3, 8.0, 0.6, lengths=rows, counts=rows)
    meta = official_vic(torch.empty(2, 9, 4, device="meta"), torch.empty(2, 9, 2, device="meta"), 3, 8.0, 0.6)
    for result in (found, meta):
        assert [tuple(part.shape) for part in result] == [(2, 9), (2, 3), (2, 9), (2, 9), (2, 9)]
        assert [part.dtype for part in result] == [torch.int64] * 2 + [torch.float32] * 3
