"""Frames of a clip: tokens by what is new, and clusters over time, on a still background with a square that moves."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcop_core import VisionView, ViTCoP, ops
from vitcop_core.methods import _temporal as temporal

SIDE, WIDTH = 6, 8
METHOD = ViTCoP(retention_ratio=1 / 3, cutoff_distance=3.0)


def scene(frames: int, moves: tuple[int, ...], seed: int = 0) -> Tensor:
    """``[F, 36, 8]``: a background that stays, and a 2 x 2 square that is elsewhere after each frame in ``moves``."""
    generator = torch.Generator().manual_seed(seed)
    ground = torch.randn(SIDE, SIDE, WIDTH, generator=generator)
    square, place, found = 6 + torch.randn(WIDTH, generator=generator), 0, []
    for frame in range(frames):
        place += frame in moves
        picture = ground.clone()
        down, across = divmod(2 * place, SIDE)
        picture[2 * (down % 3) : 2 * (down % 3) + 2, across : across + 2] = square
        found.append(picture.flatten(0, 1))
    return torch.stack(found)


def view_of(features: Tensor, frames: tuple[int, ...] | None, seed: int = 1) -> VisionView:
    """A view whose keys are the features, of one head."""
    units, width = features.shape[0], features.shape[2]
    query = torch.randn(units, 1, width, generator=torch.Generator().manual_seed(seed))
    grid = torch.arange(SIDE) / SIDE
    positions = torch.cartesian_prod(grid, grid).expand(units, -1, -1)
    keys = torch.cat([torch.zeros(units, 1, width), features], dim=1)[:, None]
    return VisionView(query, keys, 0.3, positions, features, frames=frames)


def test_novelty_is_what_was_not_seen_before() -> None:
    found = temporal.novelty(scene(8, moves=(3, 6)))
    assert found[0] > 0
    assert found[[1, 2, 4, 5, 7]].tolist() == [0.0] * 5
    assert (found[[3, 6]] > 0).all()
    # A square that comes back to a place where it has been is no news there.
    there_and_back = scene(3, moves=(1,))[[0, 1, 0]]
    assert temporal.novelty(there_and_back)[2] == 0


def test_tokens_go_to_frames_that_change() -> None:
    view = view_of(scene(8, moves=(3, 6)), (8,))
    chosen = replace(METHOD, change_share=0.5).cut_vision(view, 12, 0)
    counts: Any = chosen.counts
    assert int(counts.sum()) == 8 * 12
    assert counts.min() == 6
    assert (counts[[3, 6]] > counts[[1, 2, 4, 5, 7]].max()).all()
    assert counts[0] > counts[[1, 2, 4, 5, 7]].max()  # the frame that has none before it
    for frame, count in enumerate(counts.tolist()):
        alone = METHOD.cut_vision(view_of(scene(8, moves=(3, 6)), None), count, 0)
        assert torch.equal(chosen.index[frame, :count], alone.index[frame])
        assert (chosen.index[frame, count:] == 36).all()


@pytest.mark.parametrize("frames", [(8,), (3, 5), (1, 6, 1)], ids=str)
@pytest.mark.parametrize("share", [0.3, 1])
def test_clips_share_out_their_own(frames: tuple[int, ...], share: float) -> None:
    method = replace(METHOD, change_share=share)
    features = torch.cat([scene(count, moves=(2,), seed=count) for count in frames])
    found: Any = method.cut_vision(view_of(features, frames), 12, 0).counts
    start = 0
    for count in frames:
        own: Any = method.cut_vision(view_of(features[start : start + count], (count,)), 12, 0).counts
        assert torch.equal(found[start : start + count], own)
        assert int(own.sum()) == 12 * count
        start += count


def test_frames_that_are_all_alike_are_kept_alike_but_the_first() -> None:
    counts: Any = replace(METHOD, change_share=1).cut_vision(view_of(scene(6, ()), (6,)), 12, 0).counts
    assert counts[0] == 36
    assert counts[1:].max() - counts[1:].min() <= 1
    assert int(counts.sum()) == 72


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.5, 1e30, float("inf")]), min_size=1, max_size=9),
    data=st.data(),
)
def test_share_out_is_exact_and_within_room(weights: list[float], data: st.DataObject) -> None:
    room = data.draw(st.lists(st.integers(0, 7), min_size=len(weights), max_size=len(weights)))
    amount = data.draw(st.integers(0, sum(room)))
    found = temporal.share_out(torch.tensor(weights), torch.tensor(amount), torch.tensor(room), 7)
    assert int(found.sum()) == amount
    assert (found <= torch.tensor(room)).all()


def test_share_out_rounds_shares_to_the_nearest() -> None:
    found = temporal.share_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(60), torch.full((3,), 100), 100)
    assert found.tolist() == [10, 20, 30]


def test_defaults_leave_video_as_it_was() -> None:
    plain, clip = (METHOD.cut_vision(view_of(scene(4, (2,)), frames), 12, 3) for frames in (None, (4,)))
    assert clip.counts is None
    assert clip.spans is None
    assert torch.equal(plain.index, clip.index)
    assert plain.clusters is not None
    assert clip.clusters is not None
    assert all(map(torch.equal, plain.clusters, clip.clusters))


def test_still_background_is_clustered_across_frames() -> None:
    features = scene(4, moves=(1, 2, 3))
    chosen = replace(METHOD, cluster_frames=4).cut_vision(view_of(features, (4,)), 36, 9)
    alone = METHOD.cut_vision(view_of(features, (4,)), 36, 9)
    assert chosen.spans == (4,)
    assert chosen.clusters is not None
    assert alone.clusters is not None
    labels = chosen.clusters.labels
    assert labels.shape == (4, 36)
    assert int(labels.min()) == 0
    assert int(labels.max()) == 4 * 9 - 1
    still = (features == features[0]).all(2).all(0)
    assert (labels[:, still] == labels[0, still]).all()  # frame after frame in one cluster
    square = torch.cat([labels[frame][(features[frame] == features[0, 0]).all(1)] for frame in range(4)])
    assert not torch.isin(square, labels[0, still]).any()
    # So the same number of clusters tells more tokens of the background apart.
    assert len(labels[0, still].unique()) > len(alone.clusters.labels[0, still].unique())


@pytest.mark.parametrize("adaptive", [0, 0.6])
@pytest.mark.parametrize(("frames", "width"), [((5,), 2), ((3, 4), 3), ((2,), 8)], ids=str)
def test_spans_are_vic_with_time(frames: tuple[int, ...], width: int, adaptive: float) -> None:
    method = replace(METHOD, cluster_frames=width, change_share=adaptive)
    features = torch.cat([scene(count, moves=(1,), seed=count) for count in frames])
    view = view_of(features + 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(3)), frames)
    chosen = method.cut_vision(view, 12, 3)
    assert chosen.clusters is not None
    assert chosen.spans is not None
    start = 0
    for span in chosen.spans:
        counts = [12] * len(features) if chosen.counts is None else chosen.counts.tolist()
        tokens, places, wanted = [], [], []
        for time in range(span):
            index = chosen.index[start + time, : counts[start + time]]
            tokens.append(view.hidden[start + time, index])
            places.append(torch.cat([view.positions[0, index], torch.full((len(index), 1), time / width)], dim=1))
            wanted.append(chosen.clusters.labels[start + time, : counts[start + time]])
        alone = ops.vic_in_time(torch.cat(tokens)[None], torch.cat(places)[None], 3 * span, cutoff_distance=3.0)
        assert torch.equal(alone.labels[0], torch.cat(wanted))
        start += span
    assert start == len(features)


def test_time_of_zero_is_vic_in_place() -> None:
    features = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0))
    places = torch.rand(2, 20, 2, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 13])
    plain = ops.vic(features, places, 4, cutoff_distance=3.0, lengths=lengths)
    flat = torch.cat([places, torch.zeros(2, 20, 1)], dim=2)
    assert all(map(torch.equal, plain, ops.vic_in_time(features, flat, 4, cutoff_distance=3.0, lengths=lengths)))


def test_pooled_view_scores_averages() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 3, 1 + 49, 4, generator=generator)
    view = VisionView(
        torch.randn(2, 3, 4, generator=generator),
        keys,
        0.5,
        torch.rand(2, 9, 2),
        torch.randn(2, 9, 12),
        pool=2,
        grid=(7, 7),
    )
    laid = keys[:, :, 1:].permute(0, 1, 3, 2).flatten(1, 2).unflatten(2, (7, 7))
    wanted = torch.nn.functional.avg_pool2d(laid, 2).flatten(2).mT
    torch.testing.assert_close(view.key_features(), wanted)
    saliency = METHOD.cut_vision(view, 4, 0).saliency
    assert view.query_cls is not None
    whole = ops.cls_saliency(view.query_cls, view.keys, 0.5)[:, 1:].unflatten(1, (7, 7))
    torch.testing.assert_close(saliency, torch.nn.functional.avg_pool2d(whole, 2).flatten(1))


@pytest.mark.parametrize(
    ("given_settings", "error", "message"),
    [
        ({"change_share": -0.1}, ValueError, r"change_share must be a number in \(0, 1\], got -0.1"),
        ({"change_share": 1.5}, ValueError, "change_share must be"),
        ({"change_share": float("nan")}, ValueError, "change_share must be"),
        ({"change_share": True}, TypeError, "change_share must be"),
        ({"change_share": False}, TypeError, "change_share must be"),
        ({"change_share": "all"}, TypeError, "change_share must be"),
        ({"cluster_frames": 0}, ValueError, "cluster_frames must be an integer >= 1"),
        ({"cluster_frames": 2.0}, TypeError, "cluster_frames must be an integer"),
        ({"cluster_frames": 2, "compat": "official"}, ValueError, "cluster_frames must be 1 with compat='official'"),
    ],
)
def test_settings_are_checked(given_settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ViTCoP(retention_ratio=1 / 3, **given_settings)


def test_change_share_warns_and_names_what_to_do() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"change_share will go with the next release: .*; leave it out"
    ) as caught:
        replace(METHOD, change_share=0.5)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(METHOD, cluster_frames=2)


def test_view_checks_grid_and_frames() -> None:
    features = scene(2, ())
    with pytest.raises(ValueError, match="frames must be those of 2 units, got"):
        view_of(features, (3,))
    # Without a grid the patches of a token follow each other.
    values = torch.arange(8.0).view(1, 8)
    assert replace(view_of(features, (2,)), pool=2).pooled(values).tolist() == [[1.5, 5.5]]
