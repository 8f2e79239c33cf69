"""VisionZip's cut against its specification as loops over patches, in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcop_core import VisionView, VisionZip

Array = NDArray[Any]
CASES = 200


def slow_top(scores: Array, count: int) -> list[int]:
    """The ``count`` largest, ties to the lower index, ascending."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


class Zipped(NamedTuple):
    """A unit as VisionZip leaves it."""

    dominant: list[int]
    targets: list[int]
    hidden: list[Array]


def slow_scores(queries: Array, keys: Array, scale: float) -> Array:
    """What n tokens receive from q queries: ``[H, q, e]`` and ``[H, n, e]`` to ``[n]``, sum over heads and queries."""
    scores = np.zeros(keys.shape[1])
    for head in range(keys.shape[0]):
        for query in queries[head]:
            row = np.array([float(np.dot(query, key)) * scale for key in keys[head]])
            weights = np.exp(row - row.max())
            scores += weights / weights.sum()
    return scores


def slow_zip(scores: Array, keys: Array, states: Array, cls: Array | None, patches: list[int], counts: Any) -> Zipped:
    """VisionZip of one unit with ``scores`` [m], ``keys`` [H, m, e] and ``states`` [m, d], of some of the patches."""
    dominant_count, contextual_count = counts
    dominant = [patches[i] for i in slow_top(scores[patches], dominant_count - (cls is not None))]
    rest = [patch for patch in patches if patch not in dominant]
    step = max(1, len(rest) // contextual_count)
    targets = rest[::step][:contextual_count]
    metric = {}
    for patch in rest:
        mean = keys[:, patch].mean(0)
        metric[patch] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    joined: list[list[int]] = [[] for _ in targets]
    for patch in rest:
        if patch not in targets:
            likeness = [np.float32(np.dot(metric[patch], metric[target])) for target in targets]
            joined[max(range(len(targets)), key=lambda t: (likeness[t], -t))].append(patch)
    hidden = [*([] if cls is None else [cls]), *(states[patch] for patch in dominant)]
    for target, others in zip(targets, joined, strict=True):
        hidden.append(states[target] + (states[others].mean(0) if others else 0))
    return Zipped(dominant, targets, hidden)


def chosen(index: Tensor, size: int) -> list[int]:
    """A row of a selection, whose unused end must be ``size``."""
    row: list[int] = index.tolist()
    count = sum(i < size for i in row)
    assert row[count:] == [size] * (len(row) - count)
    return row[:count]


def zip_view(seed: int) -> tuple[VisionView, list[list[int]]]:
    """A random view, and the eligible patches of each unit."""
    generator = torch.Generator().manual_seed(seed)
    units, patches, heads, width = 1 + seed % 3, int(torch.randint(6, 50, (), generator=generator)), 3, 4
    keys = torch.randn(units, patches, heads * width, generator=generator)
    if seed % 4 == 0:  # duplicates, which are as similar to a target
        keys[:, patches // 2 : 2 * (patches // 2)] = keys[:, : patches // 2]
    keys = torch.cat([torch.randn(units, 1, heads * width, generator=generator), keys], dim=1)
    lengths = torch.randint(4, patches + 1, (units,), generator=generator).tolist()
    eligible = [sorted(torch.randperm(patches, generator=generator)[:length].tolist()) for length in lengths]
    if seed % 2:
        eligible = [list(range(patches)) for _ in lengths]
    padded = [row + [row[0]] * (max(map(len, eligible)) - len(row)) for row in eligible]
    view = VisionView(
        query_cls=torch.randn(units, heads, width, generator=generator),
        keys=keys.unflatten(2, (heads, width)).transpose(1, 2),
        scale=width**-0.5,
        positions=torch.zeros(units, patches, 2),
        hidden=torch.randn(units, patches, 5, generator=generator),
        eligible=None if seed % 2 else torch.tensor(padded),
        lengths=None if seed % 2 else torch.tensor([len(row) for row in eligible]),
        hidden_cls=torch.randn(units, 5, generator=generator),
    )
    return view, eligible


def check_zip(found: Any, row: int, expected: Zipped, patches: list[int], size: int) -> None:
    used = set(expected.dominant) | set(expected.targets)
    if len(expected.hidden) > len(used):
        used |= {min(set(patches) - used)}
    assert chosen(found.index[row], size) == sorted(used)
    hidden = found.hidden[row].double().numpy()
    np.testing.assert_allclose(hidden[: len(expected.hidden)], np.array(expected.hidden), atol=1e-5)
    assert not hidden[len(expected.hidden) :].any()


def without_cls(view: VisionView, seed: int) -> VisionView:
    """The view of a tower without a CLS token."""
    keys = view.patch_keys
    queries = torch.randn(keys.shape, generator=torch.Generator().manual_seed(seed))
    return replace(view, query_cls=None, keys=keys, hidden_cls=None, queries=lambda: queries)


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
def test_visionzip_keeps_what_loops_keep(has_cls: bool) -> None:
    for seed in range(CASES):
        view, eligible = zip_view(seed)
        view = view if has_cls else without_cls(view, seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        totals = [int(torch.randint(2, len(patches) + 1, (), generator=generator)) for patches in eligible]
        if seed % 2:
            totals = [totals[0]] * len(totals)
        counts = [max(1, round(0.3 * total)) for total in totals]
        given = (None, None) if seed % 2 else (torch.tensor(totals), torch.tensor(counts))
        found = VisionZip(retained_tokens=9).cut_vision(view, max(totals), max(counts), *given)
        queries = view.queries() if view.query_cls is None else view.query_cls.unsqueeze(2)
        for row, patches in enumerate(eligible):
            asking, keys, states = (part[row].double().numpy() for part in (queries, view.keys, view.hidden))
            scores = slow_scores(asking, keys, view.scale)[view.leading :].astype(np.float32)
            split = (totals[row] - counts[row], counts[row])
            cls = None if view.hidden_cls is None else view.hidden_cls[row].double().numpy()
            expected = slow_zip(scores, keys[:, view.leading :], states, cls, patches, split)
            check_zip(found, row, expected, patches, view.hidden.shape[1])


def test_visionzip_of_one_token_is_cls() -> None:
    view, _ = zip_view(1)
    found = VisionZip(retained_tokens=1).cut_vision(view, 1, 0)
    assert found.hidden is not None
    assert view.hidden_cls is not None
    assert torch.equal(found.hidden[:, 0], view.hidden_cls)
    assert found.index.tolist() == [[0]] * len(view.hidden)


def test_visionzip_leaves_units_without_tokens_empty() -> None:
    view, _ = zip_view(2)
    assert view.lengths is not None
    lengths, totals = view.lengths.clone(), torch.full_like(view.lengths, 3)
    lengths[-1] = totals[-1] = 0
    found = VisionZip(retained_tokens=3).cut_vision(
        replace(view, lengths=lengths), 3, 1, totals, torch.where(totals > 0, 1, 0)
    )
    assert found.hidden is not None
    assert not found.hidden[-1].any()
    assert found.index[-1].tolist() == [view.hidden.shape[1]] * 3
    assert found.hidden[0].any(dim=1).all()


def test_visionzip_needs_the_feature_of_cls(vision_view: Callable[..., VisionView]) -> None:
    with pytest.raises(ValueError, match="hidden_cls must be given"):
        VisionZip(retained_tokens=9).cut_vision(vision_view(), 9, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_visionzip_sums_before_it_rounds(dtype: torch.dtype) -> None:
    view, eligible = zip_view(5)
    assert view.hidden_cls is not None
    low = replace(view, hidden=view.hidden.to(dtype), hidden_cls=view.hidden_cls.to(dtype))
    wide = replace(low, hidden=low.hidden.float(), hidden_cls=view.hidden_cls.to(dtype).float())
    keep = len(eligible[0]) // 2
    ours, exact = (VisionZip(retained_tokens=9).cut_vision(seen, keep, 2).hidden for seen in (low, wide))
    assert ours is not None
    assert exact is not None
    assert ours.dtype is dtype
    assert torch.equal(ours, exact.to(dtype))
