"""ViTCoP before the language model against the paper's algorithms as loops over tokens, in float64."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vitcop_core import EarlyViTCoP, VisionView, find_method

Array = NDArray[Any]
CASES = 200
HOW: dict[str, Any] = {"cutoff_distance": 3.0, "spatial_threshold": 0.6}


def slow_top(scores: Array, count: int) -> list[int]:
    """The ``count`` largest, ties to the lower index, ascending."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def view_of(seed: int) -> tuple[VisionView, list[list[int]], list[int]]:
    """A random view of some units, the eligible patches of each, and how many each keeps."""
    generator = torch.Generator().manual_seed(seed)
    units, side, heads, width = 1 + seed % 3, int(torch.randint(3, 7, (), generator=generator)), 2, 3
    patches = side * side
    lengths = [patches] * units if seed % 2 else torch.randint(2, patches + 1, (units,), generator=generator).tolist()
    eligible = [sorted(torch.randperm(patches, generator=generator)[:length].tolist()) for length in lengths]
    padded = [row + [row[0]] * (max(lengths) - len(row)) for row in eligible]
    share = float(torch.rand((), generator=generator))
    keeps = [max(1, min(len(row), floor(share * len(row)))) for row in eligible]
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)) / side
    view = VisionView(
        query_cls=torch.randn(units, heads, width, generator=generator),
        keys=2 * torch.randn(units, heads, 1 + patches, width, generator=generator),
        scale=width**-0.5,
        positions=grid.float().expand(units, -1, -1),
        hidden=torch.randn(units, patches, 4, generator=generator),
        eligible=None if seed % 2 else torch.tensor(padded),
        lengths=None if seed % 2 else torch.tensor(lengths),
        entry_keys=lambda features: features[:, None].square(),
    )
    return view, eligible, keeps


def slow_cut(
    view: VisionView, row: int, patches: list[int], keep: int, ranking: str, slow_vic: Any, slow_co_prune: Any
) -> tuple[list[int], Array]:
    """What one unit keeps: the patches that its tokens are named after, and their features."""
    keys, hidden = (each[row].double().numpy() for each in (view.keys, view.hidden))
    assert view.query_cls is not None
    query, paid = view.query_cls[row].double().numpy(), np.zeros(keys.shape[1])
    for head in range(len(keys)):
        scores = np.exp(keys[head] @ query[head] * view.scale)
        paid += scores / scores.sum()
    paid = paid[1:]
    share = min(Fraction(1), Fraction(1, 5) + Fraction(9, 10) * Fraction(keep, len(patches)))
    line = Fraction(1, 5) + Fraction(9, 10) * Fraction(keep, len(patches))
    entering = min(len(patches), max(keep, floor(line * len(patches))))
    assert share <= 1
    alpha = Fraction(3, 10) * line + Fraction(3, 100)
    centers = max(1, min(ceil(alpha * entering), keep // 2))
    chosen = [patches[i] for i in slow_top(paid[patches], entering)]
    places = view.positions[row].double().numpy()[chosen]
    features = keys[:, 1:].transpose(1, 0, 2).reshape(hidden.shape[0], -1)[chosen]
    labels = slow_vic(features, places, centers, HOW["cutoff_distance"], HOW["spatial_threshold"])[0]
    norms = -paid[chosen] if ranking == "vision" else np.linalg.norm(hidden[chosen] ** 2, axis=1)
    index, merged, _, _ = slow_co_prune(hidden[chosen], [int(label) for label in labels], norms, keep)
    return [chosen[i] for i in index], np.array(merged)


@pytest.mark.parametrize("ranking", ["vision", "layer0"])
def test_it_keeps_what_loops_keep(
    slow_vic: Callable[..., Any], slow_co_prune: Callable[..., Any], ranking: Any
) -> None:
    method = EarlyViTCoP(retention_ratio=1 / 3, ranking=ranking, **HOW)
    for seed in range(CASES):
        view, eligible, keeps = view_of(seed)
        alike = view.eligible is None
        found = method.cut_vision(view, max(keeps), 0, None if alike else torch.tensor(keeps))
        assert found.hidden is not None
        for row, (patches, keep) in enumerate(zip(eligible, keeps, strict=True)):
            index, hidden = slow_cut(view, row, patches, keep, ranking, slow_vic, slow_co_prune)
            size = view.hidden.shape[1]
            assert found.index[row].tolist() == index + [size] * (max(keeps) - keep)
            np.testing.assert_allclose(found.hidden[row, :keep], hidden, atol=1e-5)
            assert not found.hidden[row, keep:].any()


def test_units_are_cut_as_alone() -> None:
    method = EarlyViTCoP(retention_ratio=1 / 3, pi1=0.8, center_ratio=0.2, **HOW)
    for seed in range(0, 40, 2):
        view, eligible, keeps = view_of(seed)
        found = method.cut_vision(view, max(keeps), 0, torch.tensor(keeps))
        assert view.query_cls is not None
        for row, (patches, keep) in enumerate(zip(eligible, keeps, strict=True)):
            one = replace(
                view,
                **{name: getattr(view, name)[row : row + 1] for name in ("query_cls", "keys", "positions", "hidden")},
                eligible=torch.tensor([patches]),
                lengths=None,
            )
            alone = method.cut_vision(one, keep, 0)
            assert alone.hidden is not None
            assert found.hidden is not None
            assert torch.equal(found.index[row, :keep], alone.index[0])
            torch.testing.assert_close(found.hidden[row, :keep], alone.hidden[0])


def test_plan_holds_the_same_tokens_in_every_layer() -> None:
    plan = EarlyViTCoP(retained_tokens=64).plan(32, 576)
    assert plan.tokens_per_layer == (64,) * 32
    assert plan.decoder == ()
    assert EarlyViTCoP(retention_ratio=1 / 9).plan(8, [576, 288], images=2).entry_tokens == 64 + 32
    assert EarlyViTCoP(retention_ratio=1).plan(32, 576).is_identity
    with pytest.raises(ValueError, match="retained_tokens must"):
        EarlyViTCoP(retained_tokens=1).plan(32, [500, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "retained_tokens or retention_ratio must be given"),
        ({"retained_tokens": 64, "pi1": 0}, "pi1 must be"),
        ({"retained_tokens": 64, "center_ratio": 2}, "center_ratio must be"),
        ({"retained_tokens": 64, "ranking": "layer1"}, "ranking must be"),
        ({"retained_tokens": 64, "vision_saliency": "none"}, "vision_saliency must be"),
        ({"retained_tokens": 64, "spatial_threshold": -1}, "spatial_threshold must be"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyViTCoP(**settings)


def test_it_has_a_name_in_text() -> None:
    found = find_method("earlyvitcop(ranking='layer0')", retained_tokens=64)
    assert found == EarlyViTCoP(retained_tokens=64, ranking="layer0")
