"""The cutoff distance that fits the tokens: the rule of the density-peaks paper, row by row, and where it is used."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcop_core import VisionView, VisionZip, ViTCoP, ops
from vitcop_core.methods.official import official_vic

AUTO = ViTCoP(retained_tokens=64, cutoff_distance="auto")
LENGTHS = (40, 1, 17, 0, 2, 3)


def slow(features: Tensor) -> float:
    """Of P distances in ascending order the one of number P / 50, rounded, for one row."""
    rows = features.double().tolist()
    distances = sorted(math.dist(a, b) for number, a in enumerate(rows) for b in rows[:number])
    if not distances:
        return 1.0
    place = max(1, math.floor(len(distances) / 50 + 0.5))
    return max(distances[place - 1], torch.finfo(torch.float32).tiny)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.booleans())
def test_it_is_the_rule_of_the_paper(tokens: int, width: int, is_tied: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    features = 4 * torch.randn(2, tokens, width, generator=generator)
    features = features.round() if is_tied else features
    found = ops.auto_cutoff(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([slow(row) for row in features]), rtol=1e-6, atol=0)


def test_row_depends_neither_on_its_neighbors_nor_on_padding() -> None:
    features, lengths = 4 * torch.randn(len(LENGTHS), 40, 6, generator=torch.Generator().manual_seed(0)), LENGTHS
    padding = torch.arange(40) >= torch.tensor(lengths)[:, None]
    found = ops.auto_cutoff(features.masked_fill(padding[..., None], math.nan), lengths=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = ops.auto_cutoff(features[row : row + 1, :length]) if length else torch.ones(1)
        assert torch.equal(found[row : row + 1], alone)


def test_about_two_percent_of_the_pairs_are_nearer() -> None:
    features = torch.randn(1, 200, 16, generator=torch.Generator().manual_seed(0))
    cutoff = ops.auto_cutoff(features)
    distances = torch.nn.functional.pdist(features[0])
    assert (distances <= cutoff).sum() == round(len(distances) / 50)


@pytest.mark.parametrize("cluster", [ops.vic, official_vic], ids=["paper", "official"])
def test_row_is_clustered_by_its_own_cutoff(cluster: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 4 * torch.randn(3, 30, 5, generator=generator)
    places, cutoffs = torch.rand(3, 30, 2, generator=generator), torch.tensor([0.5, 8.0, 60.0])

    def run(own: slice, cutoff: Any) -> Any:
        if cluster is ops.vic:
            return ops.vic(features[own], places[own], 4, cutoff_distance=cutoff)
        return official_vic(features[own], places[own], 4, cutoff, 0.6)

    together = run(slice(None), cutoffs)
    for row, cutoff in enumerate(cutoffs.tolist()):
        for mine, theirs in zip(together, run(slice(row, row + 1), cutoff), strict=True):
            assert torch.equal(mine[row : row + 1], theirs)


def test_duplicates_alone_count_where_they_are_most_pairs() -> None:
    features = torch.tensor([[0.0, 0, 0, 5, 9]]).unsqueeze(2)
    cutoff = ops.auto_cutoff(features)
    assert cutoff.item() == torch.finfo(torch.float32).tiny
    found = ops.vic(features, torch.zeros(1, 5, 2), 2, cutoff_distance=cutoff)
    assert found.density.tolist() == [[2, 2, 2, 0, 0]]
    assert found.labels.min() >= 0


@pytest.mark.parametrize("cutoffs", [torch.ones(3), torch.ones(2, 1), torch.ones(2, dtype=torch.int64)])
def test_cutoffs_that_are_not_one_a_row_are_refused(cutoffs: Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match="cutoff_distance must"):
        ops.vic(torch.rand(2, 4, 3), torch.rand(2, 4, 2), 2, cutoff_distance=cutoffs)


@pytest.mark.parametrize("settings_", [{}, {"compat": "official"}, {"vic_features": "vision_hidden"}], ids=str)
def test_auto_clusters_each_unit_by_what_it_shows(vision_view: Callable[..., VisionView], settings_: Any) -> None:
    view, method = vision_view(), replace(AUTO, **settings_)
    chosen = method.cut_vision(view, 12, 4)
    features = view.key_features() if method.switch("vic_features") == "vit_keys" else view.hidden
    wanted = ops.auto_cutoff(ops.gather_tokens([features], chosen.index)[0])
    assert isinstance(chosen.cutoff, Tensor)
    assert torch.equal(chosen.cutoff, wanted)
    for unit, cutoff in enumerate(wanted.tolist()):
        alone = replace(method, cutoff_distance=cutoff).cut_vision(view, 12, 4)
        assert alone.clusters is not None
        assert chosen.clusters is not None
        assert torch.equal(chosen.clusters.labels[unit], alone.clusters.labels[unit])


def test_auto_over_spans_takes_a_cutoff_for_each(vision_view: Callable[..., VisionView]) -> None:
    view = replace(vision_view(units=5), frames=(5,))
    chosen = replace(AUTO, cluster_frames=2).cut_vision(view, 6, 2)
    assert isinstance(chosen.cutoff, Tensor)
    assert chosen.cutoff.shape == (3,)
    kept = ops.gather_tokens([view.key_features()], chosen.index)[0]
    assert torch.equal(chosen.cutoff[:1], ops.auto_cutoff(kept[:2].flatten(0, 1)[None]))
    assert torch.equal(chosen.cutoff[2:], ops.auto_cutoff(kept[4:]))


def test_default_is_that_of_the_tower(vision_view: Callable[..., VisionView]) -> None:
    default = ViTCoP(retained_tokens=64)
    assert default.cut_vision(vision_view(), 12, 4).cutoff == 8.0
    assert isinstance(default.cut_vision(vision_view(has_cls=False), 12, 4).cutoff, Tensor)
    assert default.cut_vision(vision_view(), 12, 0).cutoff is None
    assert replace(default, cutoff_distance=5).cut_vision(vision_view(has_cls=False), 12, 4).cutoff == 5
    with_cls, without = (default.for_tower(has_cls=has_cls) for has_cls in (True, False))
    assert (with_cls.cutoff_distance, with_cls.vision_saliency) == (8.0, "cls")
    assert (without.cutoff_distance, without.vision_saliency) == ("auto", "received")
    zipped = VisionZip(retained_tokens=64)
    assert [zipped.for_tower(has_cls=has_cls).vision_saliency for has_cls in (True, False)] == ["cls", "received"]


def test_settings_that_differ_are_told_apart() -> None:
    methods = [replace(AUTO, cutoff_distance=cutoff, vision_saliency=saliency) for cutoff, saliency in OTHERS]
    assert len({repr(method) for method in methods}) == len(set(methods)) == len(OTHERS)


OTHERS: list[tuple[Any, Any]] = [(None, "auto"), ("auto", "auto"), (8.0, "auto"), (8.0, "cls"), ("auto", "received")]


@pytest.mark.parametrize("cutoff", ["automatic", 0, -1.0, math.nan, True, (8,)])
def test_other_cutoffs_are_refused(cutoff: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="cutoff_distance must be a positive number"):
        ViTCoP(retained_tokens=64, cutoff_distance=cutoff)
