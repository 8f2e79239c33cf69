"""Golden cases, random inputs, and slow restatements of the algorithms to check the operators against."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from torch import Tensor

from vitcop_core import DecoderView, VisionView

# How long a draw takes says how busy the machine is, and nothing of the strategy.
settings.register_profile("vitcop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vitcop")

GOLDEN = Path(__file__).parent / "golden"
Array = NDArray[Any]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Array]]:
    """Loads a golden case by name."""

    def load(name: str) -> dict[str, Array]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as case:
            return {key: case[key] for key in case.files}

    return load


@pytest.fixture(scope="session")
def vision_view() -> Callable[..., VisionView]:
    """Makes a random view of units on a square grid, of a tower with a CLS token or without."""

    def make(
        units: int = 2, side: int = 6, *, dtype: torch.dtype = torch.float32, seed: int = 0, has_cls: bool = True
    ) -> VisionView:
        generator = torch.Generator().manual_seed(seed)
        tokens, heads, width = side * side, 4, 8
        grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float() / side
        query_cls = torch.randn(units, heads, width, generator=generator).to(dtype)
        keys = (3 * torch.randn(units, heads, 1 + tokens, width, generator=generator)).to(dtype)
        hidden = torch.randn(units, tokens, 16, generator=generator).to(dtype)
        queries = torch.randn(keys.shape, generator=generator).to(dtype)
        first = 0 if has_cls else 1
        return VisionView(
            query_cls=query_cls if has_cls else None,
            keys=keys[:, :, first:],
            scale=width**-0.5,
            positions=grid.expand(units, -1, -1),
            hidden=hidden,
            queries=lambda: queries[:, :, first:],
        )

    return make


@pytest.fixture(scope="session")
def decoder_view() -> Callable[..., DecoderView]:
    """Makes a random view of rows with dense labels, the given lengths, and -1 as padding's label."""

    def make(lengths: list[int], clusters: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> DecoderView:
        generator = torch.Generator().manual_seed(seed)
        rows, tokens = len(lengths), max(lengths)
        valid = torch.tensor(lengths)
        labels = torch.randint(clusters, (rows, tokens), generator=generator)
        labels[:, :clusters] = torch.arange(clusters)[:tokens]
        labels = labels.masked_fill(torch.arange(tokens) >= valid.unsqueeze(1), -1)
        attention = torch.rand(rows, tokens, generator=generator)
        return DecoderView(
            hidden=torch.randn(rows, tokens, 10, generator=generator).to(dtype),
            keys=torch.randn(rows, 3, tokens, 8, generator=generator).to(dtype),
            labels=labels,
            num_clusters=clusters,
            lengths=None if min(lengths) == tokens else valid,
            attention=lambda: attention,
        )

    return make


def _slow_vic(
    features: Array, positions: Array, num_centers: int, cutoff_distance: float, spatial_threshold: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Algorithm 2 token by token, in float64; densities and distances are compared as the float32 they round to."""
    count = len(features)
    exact = np.array([[math.dist(a, b) for b in features] for a in features]).reshape(count, count)
    kernel = np.exp(-((exact / cutoff_distance) ** 2))
    density = np.array([math.fsum(kernel[i, j] for j in range(count) if j != i) for i in range(count)], np.float32)
    distances = exact.astype(np.float32)
    order = sorted(range(count), key=lambda i: (-density[i], i))
    delta = np.full(count, np.inf, np.float32)
    parent = np.full(count, -1)
    for place, i in enumerate(order):
        for j in sorted(order[:place]):
            near = math.dist(positions[i], positions[j]) ** 2 <= spatial_threshold**2 + 1e-6
            if near and distances[i, j] < delta[i]:
                delta[i], parent[i] = distances[i, j], j
    gamma = np.array([np.inf if parent[i] < 0 else density[i] * delta[i] for i in range(count)], np.float32)
    centers = sorted(range(count), key=lambda i: (-gamma[i], -density[i], i))[:num_centers]
    labels = np.full(count, -1)
    for label, i in enumerate(centers):
        labels[i] = label
    for i in order:
        if labels[i] < 0:
            nearest = min(range(len(centers)), key=lambda k: (distances[i, centers[k]], k))
            labels[i] = labels[parent[i]] if parent[i] >= 0 else nearest
    return labels, np.array(centers), density, delta, gamma


def _slow_quotas(sizes: list[int], elites: int) -> list[int]:
    """Equation 5, then the left-over one at a time, pass after pass."""
    total = sum(sizes)
    quotas = [size * elites // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda c: (-(sizes[c] * elites % total), c))
    left = elites - sum(quotas)
    while left:
        for cluster in order:
            if left and quotas[cluster] < sizes[cluster] - 1:
                quotas[cluster] += 1
                left -= 1
    return quotas


def _slow_groups(labels: list[int], norms: Array, budget: int) -> list[list[int]]:
    """The groups of Algorithm 3 that are merged; every other token is an elite."""
    names = sorted(set(labels))
    clusters = [[i for i, label in enumerate(labels) if label == name] for name in names]
    if budget >= len(labels):
        return []
    if len(clusters) > budget:
        sums = [np.float32(math.fsum(float(norms[i]) for i in members)) for members in clusters]
        ranked = sorted(range(len(clusters)), key=lambda c: (sums[c], c))
        rest = [i for c in ranked[budget - 1 :] for i in clusters[c]]
        return [clusters[c] for c in ranked[: budget - 1]] + [sorted(rest)]
    quotas = _slow_quotas([len(members) for members in clusters], budget - len(clusters))
    return [
        sorted(sorted(members, key=lambda i: (norms[i], i))[quota:])
        for members, quota in zip(clusters, quotas, strict=True)
    ]


def _slow_co_prune(
    hidden: Array, labels: list[int], norms: Array, budget: int
) -> tuple[list[int], Array, list[bool], list[int]]:
    """Algorithm 3 cluster by cluster: index, hidden, is_merged and slot of one row."""
    groups = _slow_groups(labels, norms, budget)
    merged = {members[len(members) // 2]: members for members in groups}
    grouped = {i for members in groups for i in members}
    index = sorted([i for i in range(len(labels)) if i not in grouped] + list(merged))
    rows = [hidden[merged.get(i, [i])].mean(0) for i in index]
    slot = [0] * len(labels)
    for place, i in enumerate(index):
        for member in merged.get(i, [i]):
            slot[member] = place
    return index, np.array(rows).reshape(len(index), hidden.shape[1]), [i in merged for i in index], slot


@pytest.fixture(scope="session")
def slow_vic() -> Callable[..., tuple[Array, Array, Array, Array, Array]]:
    """Algorithm 2 as loops."""
    return _slow_vic


@pytest.fixture(scope="session")
def slow_co_prune() -> Callable[..., tuple[list[int], Array, list[bool], list[int]]]:
    """Algorithm 3 as loops."""
    return _slow_co_prune


@pytest.fixture(scope="session")
def pad_rows() -> Callable[[list[Tensor], float], Tensor]:
    """Stacks rows of different lengths, padded at the end."""

    def pad(rows: list[Tensor], value: float) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return pad
