"""DivPrune's and VisPruner's cuts against their specifications as loops over tokens, in float64."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcop_core import DivPrune, VisionView, VisPruner
from vitcop_core.methods import _likeness

Array = NDArray[Any]
CASES = 200


def slow_cosine(one: Array, other: Array) -> float:
    """Rounded to 24 bits, as similarities are compared."""
    lengths = max(float(np.linalg.norm(one)), 1e-12) * max(float(np.linalg.norm(other)), 1e-12)
    return round(float(np.dot(one, other)) / lengths * 2**24) / 2**24


def slow_farthest(features: Array, count: int) -> list[int]:
    """DivPrune: in the order in which tokens are chosen."""
    size = len(features)
    alike = [[slow_cosine(features[i], features[j]) for j in range(size)] for i in range(size)]
    chosen: list[int] = []
    while len(chosen) < min(count, size):
        rest = [i for i in range(size) if i not in chosen]
        near = {i: max((alike[i][j] for j in chosen or range(size) if j != i), default=-1.0) for i in rest}
        chosen.append(min(rest, key=lambda i: (near[i], i)))
    return chosen


def slow_visual(scores: Array, features: Array, important: int, diverse: int) -> list[int]:
    """VisPruner of the tokens with ``scores`` [n] and ``features`` [n, d]."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    rest = order[important:]
    while len(rest) > diverse:
        first, second = rest[::2], rest[1::2]
        dropped = min(8, len(rest) - diverse, len(first))
        near = {i: max((slow_cosine(features[i], features[j]) for j in second), default=-1.0) for i in first}
        first = sorted(first, key=lambda i: (-near[i], first.index(i)))[dropped:]
        rest = first + second
    return sorted(order[:important] + rest)


def slow_scores(queries: Array, keys: Array, scale: float) -> Array:
    """What n tokens receive from q queries: ``[H, q, e]`` and ``[H, n, e]`` to ``[n]``, sum over heads and queries."""
    scores = np.zeros(keys.shape[1])
    for head in range(keys.shape[0]):
        for query in queries[head]:
            row = np.array([float(np.dot(query, key)) * scale for key in keys[head]])
            weights = np.exp(row - row.max())
            scores += weights / weights.sum()
    return scores.astype(np.float32)


class Case(NamedTuple):
    """A random view, the patches that each unit may choose from, and how many each keeps."""

    view: VisionView
    eligible: list[list[int]]
    totals: list[int]

    @property
    def is_ragged(self) -> bool:
        return self.view.lengths is not None


def make_case(seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    units, patches, heads, width = 1 + seed % 3, number(1, 48), 3, 4
    hidden = torch.randn(units, patches, 5, generator=generator)
    if seed % 4 == 0:  # equal cosines, and duplicates
        hidden = torch.randint(-1, 2, hidden.shape, generator=generator).float()
        hidden[:, patches // 2 : 2 * (patches // 2)] = 2 * hidden[:, : patches // 2]
    eligible = [list(range(patches)) for _ in range(units)]
    if seed % 2 == 0:
        sizes = [number(0 if unit else 1, patches) for unit in range(units)]
        eligible = [sorted(torch.randperm(patches, generator=generator)[:size].tolist()) for size in sizes]
    totals = [number(min(len(own), 1), len(own)) for own in eligible]
    if seed % 2:
        totals = [totals[0]] * units
    most = max(map(len, eligible))
    view = VisionView(
        query_cls=torch.randn(units, heads, width, generator=generator) if seed % 5 else None,
        keys=torch.randn(units, heads, (seed % 5 > 0) + patches, width, generator=generator),
        scale=width**-0.5,
        positions=torch.zeros(units, patches, 2),
        hidden=hidden,
        eligible=None if seed % 2 else torch.tensor([own + [patches - 1] * (most - len(own)) for own in eligible]),
        lengths=None if seed % 2 else torch.tensor([len(own) for own in eligible]),
    )
    queries = torch.randn(view.keys.shape, generator=generator)
    return Case(replace(view, queries=lambda: queries), eligible, totals)


def chosen(index: Tensor, size: int) -> list[int]:
    """A row of a selection, whose unused end must be ``size``."""
    row: list[int] = index.tolist()
    count = sum(i < size for i in row)
    assert row[count:] == [size] * (len(row) - count)
    return row[:count]


def units_of(case: Case, index: Tensor) -> Iterator[tuple[int, list[int], int, list[int]]]:
    """Each unit's number, patches on offer, tokens to keep, and what was chosen."""
    for unit, (own, total) in enumerate(zip(case.eligible, case.totals, strict=True)):
        yield unit, own, total, chosen(index[unit], case.view.hidden.shape[1])


def divpruned(case: Case) -> Any:
    keeps = torch.tensor(case.totals) if case.is_ragged else None
    return DivPrune(retained_tokens=1).cut_vision(case.view, max(case.totals), 0, keeps)


def test_divprune_keeps_what_loops_keep() -> None:
    for seed in range(CASES):
        case = make_case(seed)
        found = divpruned(case)
        for unit, own, total, index in units_of(case, found.index):
            order = [own[i] for i in slow_farthest(case.view.hidden[unit, own].double().numpy(), total)]
            assert index == sorted(order), seed
            ranked = sorted(index, key=lambda patch: -found.saliency[unit, patch])
            assert ranked == order, seed
            assert int((found.saliency[unit] > 0).sum()) == len(order)


def test_divprune_without_all_pairs_in_memory_keeps_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [make_case(seed) for seed in range(40)]
    held = [(divpruned(case).index, vispruned(case, VisPruner(retained_tokens=1)).index) for case in cases]
    monkeypatch.setattr(_likeness, "_HELD", 0)
    monkeypatch.setattr(_likeness, "_BLOCK", 200)
    for case, (diverse, visual) in zip(cases, held, strict=True):
        assert torch.equal(divpruned(case).index, diverse)
        assert torch.equal(vispruned(case, VisPruner(retained_tokens=1)).index, visual)


def vispruned(case: Case, method: VisPruner) -> Any:
    counts = [total - int(total * method.important_ratio) for total in case.totals]
    given = (torch.tensor(case.totals), torch.tensor(counts)) if case.is_ragged else (None, None)
    return method.cut_vision(case.view, max(case.totals), max(counts), *given)


@pytest.mark.parametrize("ratio", [0.5, 0.25, 1])
def test_vispruner_keeps_what_loops_keep(ratio: float) -> None:
    for seed in range(CASES if ratio == 0.5 else 40):
        case = make_case(seed)
        found = vispruned(case, VisPruner(retained_tokens=1, important_ratio=ratio))
        view = case.view
        queries = view.queries() if view.query_cls is None else view.query_cls.unsqueeze(2)
        for unit, own, total, index in units_of(case, found.index):
            asking, keys = queries[unit].double().numpy(), view.keys[unit].double().numpy()
            scores = slow_scores(asking, keys, view.scale)[view.leading :][own]
            features, important = view.hidden[unit, own].double().numpy(), int(total * ratio)
            expected = slow_visual(scores, features, important, total - important)
            assert index == [own[i] for i in expected], seed


def test_features_that_are_not_numbers_are_chosen_last() -> None:
    case = make_case(7)
    hidden = case.view.hidden.clone()
    size = hidden.shape[1]
    hidden[:, 3] = torch.nan
    found = DivPrune(retained_tokens=1).cut_vision(replace(case.view, hidden=hidden), size - 1, 0)
    assert found.index[0].tolist() == [patch for patch in range(size) if patch != 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [DivPrune, VisPruner])
def test_cosines_do_not_depend_on_the_dtype_that_features_come_in(dtype: torch.dtype, method: Any) -> None:
    case = make_case(11)
    low = replace(case.view, hidden=case.view.hidden.to(dtype))
    wide = replace(low, hidden=low.hidden.float())
    keep = case.view.hidden.shape[1] // 2
    one, other = (method(retained_tokens=1).cut_vision(seen, keep, keep // 2).index for seen in (low, wide))
    assert torch.equal(one, other)
