"""What ViTCoP's cuts choose."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcop_core import (
    DecoderCut,
    DecoderView,
    Method,
    Plan,
    Selection,
    VisionView,
    ViTCoP,
    identity_plan,
    ops,
)
from vitcop_core.diagnostics import CUTOFF_SCALE_RANGE, cutoff_scale
from vitcop_core.methods.official import head_mean_norm, official_vic

PAPER = ViTCoP(retained_tokens=64)
OFFICIAL = ViTCoP(retained_tokens=64, compat="official")
CO_PRUNE, TOP = DecoderCut(2, 9, "co_prune"), DecoderCut(22, 5, "top_tokens")
VARIANTS = {
    "paper": PAPER,
    "official": OFFICIAL,
    "attention": replace(PAPER, saliency="attention"),
    "rounded": replace(PAPER, quota="rounded"),
    "anchor": replace(PAPER, merge="anchor_plus_mean"),
    "head_mean": replace(PAPER, knorm="head_mean"),
}


def row_of(view: DecoderView, row: int, length: int) -> DecoderView:
    """One row of a view without its padding."""
    assert view.labels is not None
    attention = view.attention()[row : row + 1, :length]
    return replace(
        view,
        hidden=view.hidden[row : row + 1, :length],
        keys=view.keys[row : row + 1, :, :length],
        labels=view.labels[row : row + 1, :length],
        lengths=None,
        attention=lambda: attention,
    )


def parts(chosen: Selection) -> list[Tensor]:
    return [part for part in (chosen.index, chosen.hidden, chosen.is_merged, chosen.slot) if part is not None]


def test_vision_cut_keeps_what_cls_attends_to(vision_view: Callable[..., VisionView]) -> None:
    view = vision_view()
    assert view.query_cls is not None
    chosen = PAPER.cut_vision(view, 10, 0)
    attention = torch.einsum("che,chne->chn", view.query_cls, view.keys).mul(view.scale).softmax(-1).sum(1)[:, 1:]
    torch.testing.assert_close(chosen.saliency, attention)
    assert torch.equal(chosen.index, attention.topk(10).indices.sort().values)
    assert chosen.clusters is None


@pytest.mark.parametrize(("has_cls", "choice"), [(True, "received"), (False, "received"), (False, "auto")])
def test_vision_cut_keeps_what_receives_attention(
    vision_view: Callable[..., VisionView], has_cls: bool, choice: Any
) -> None:
    view = vision_view(has_cls=has_cls)
    method = replace(PAPER, vision_saliency=choice)
    assert not method.needs_cls
    attention = torch.einsum("chqe,chne->chqn", view.queries(), view.keys).mul(view.scale).softmax(-1).mean((1, 2))
    saliency = method.cut_vision(view, 10, 0).saliency
    torch.testing.assert_close(saliency, attention[:, view.leading :])


def test_vision_cut_by_cls_needs_one(vision_view: Callable[..., VisionView]) -> None:
    method = replace(PAPER, vision_saliency="cls")
    assert method.needs_cls
    with pytest.raises(ValueError, match="query_cls must be given for vision_saliency='cls', got None; use"):
        method.cut_vision(vision_view(has_cls=False), 10, 0)
    assert torch.equal(method.cut_vision(vision_view(), 10, 0).index, PAPER.cut_vision(vision_view(), 10, 0).index)


@pytest.mark.parametrize("features", ["vit_keys", "vision_hidden"])
def test_vision_cut_clusters_the_kept_tokens(vision_view: Callable[..., VisionView], features: Any) -> None:
    view = vision_view()
    chosen = replace(PAPER, vic_features=features).cut_vision(view, 10, 3)
    assert chosen.clusters is not None
    for unit, index in enumerate(chosen.index):
        tokens = view.keys[unit, :, 1:].permute(1, 0, 2).flatten(1) if features == "vit_keys" else view.hidden[unit]
        alone = ops.vic(tokens[index][None], view.positions[unit, index][None], 3)
        assert torch.equal(chosen.clusters.labels[unit], alone.labels[0])
        assert torch.equal(chosen.clusters.centers[unit], alone.centers[0])


def test_vision_cut_may_cluster_without_dropping(vision_view: Callable[..., VisionView]) -> None:
    chosen = PAPER.cut_vision(vision_view(), 36, 5)
    assert torch.equal(chosen.index, torch.arange(36).expand(2, -1))
    assert chosen.clusters is not None
    assert int(chosen.clusters.labels.max()) == 4


def test_official_clusters_reserve_the_last_label_for_tokens_without_one() -> None:
    # Tokens 0 and 1 are equal and densest: each is the other's parent, so neither gets a label, nor does token 2.
    keys = torch.tensor([0.0, 0, 0, 3, 50]).view(1, 1, 5, 1)
    view = VisionView(torch.zeros(1, 1, 1), keys, 1.0, torch.zeros(1, 4, 2), torch.zeros(1, 4, 1))
    chosen = OFFICIAL.cut_vision(view, 4, 2)
    assert chosen.clusters is not None
    assert chosen.clusters.centers.tolist() == [[3]]
    assert chosen.clusters.labels.tolist() == [[1, 1, 1, 0]]


def test_official_parentless_tokens_follow_token_0() -> None:
    features = torch.tensor([[[0.0], [0.1], [0.2], [9.0]]])
    apart = torch.arange(8.0).view(1, 4, 2)
    clusters = official_vic(features, apart, 1, 8.0, 0.5)
    # No token has a neighbor; token 1 is densest, all are infinitely important, and the first of them is the center.
    assert clusters.centers.tolist() == [[0]]
    assert clusters.labels.tolist() == [[0, 0, 0, 0]]
    clusters = official_vic(features.flip(1), apart, 2, 8.0, 0.5)
    assert clusters.labels.tolist() == [[0, 1, 0, 0]]


def test_decoder_cuts_use_the_chosen_saliency(decoder_view: Callable[..., DecoderView]) -> None:
    view = decoder_view([20, 20], 4)
    by_norm = PAPER.cut_decoder(TOP, view)
    norms = view.keys.square().sum((1, 3)).sqrt()
    assert torch.equal(by_norm.index, norms.topk(5, largest=False).indices.sort().values)
    assert by_norm.hidden is None
    assert by_norm.is_merged is None
    by_attention = VARIANTS["attention"].cut_decoder(TOP, view)
    assert torch.equal(by_attention.index, view.attention().topk(5).indices.sort().values)
    by_mean = VARIANTS["head_mean"].cut_decoder(TOP, view)
    head_mean = view.keys.mean(1).norm(dim=-1)
    torch.testing.assert_close(head_mean_norm(view.keys), head_mean)
    assert torch.equal(by_mean.index, head_mean.topk(5, largest=False).indices.sort().values)


def test_attention_is_computed_only_when_it_is_used(decoder_view: Callable[..., DecoderView]) -> None:
    def forbidden() -> Tensor:
        raise AssertionError("nobody asked")

    view = replace(decoder_view([20], 4), attention=forbidden)
    PAPER.cut_decoder(CO_PRUNE, view)
    PAPER.cut_decoder(TOP, view)
    with pytest.raises(AssertionError, match="nobody asked"):
        VARIANTS["attention"].cut_decoder(CO_PRUNE, view)


def test_merged_tokens_are_means_or_anchor_plus_mean(decoder_view: Callable[..., DecoderView]) -> None:
    view = decoder_view([20], 4)
    mean, plus = PAPER.cut_decoder(CO_PRUNE, view), VARIANTS["anchor"].cut_decoder(CO_PRUNE, view)
    assert mean.hidden is not None
    assert plus.hidden is not None
    assert mean.is_merged is not None
    assert torch.equal(mean.index, plus.index)
    anchors = view.hidden[0, mean.index[0]]
    expected = torch.where(mean.is_merged[0].unsqueeze(1), mean.hidden[0] + anchors, anchors)
    torch.testing.assert_close(plus.hidden[0], expected)
    assert int(mean.is_merged.sum()) == 4


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("cut", [CO_PRUNE, TOP], ids=["co_prune", "top_tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ragged_rows_equal_rows_alone(
    decoder_view: Callable[..., DecoderView], method: ViTCoP, cut: DecoderCut, dtype: torch.dtype
) -> None:
    lengths, keeps = [24, 6, 15], [9, 6, 4]
    view = decoder_view(lengths, 4, dtype=dtype)
    together = method.cut_decoder(cut, view, torch.tensor(keeps).clamp(max=cut.keep))
    for row, (length, keep) in enumerate(zip(lengths, keeps, strict=True)):
        alone = method.cut_decoder(replace(cut, keep=min(keep, cut.keep)), row_of(view, row, length))
        assert (together.index[row, alone.index.shape[1] :] == 24).all()
        for mine, theirs in zip(parts(together), parts(alone), strict=True):
            assert torch.equal(mine[row : row + 1, : theirs.shape[1]], theirs)


def test_empty_official_catch_all_costs_no_token(decoder_view: Callable[..., DecoderView]) -> None:
    view = decoder_view([20], 4)
    spare = OFFICIAL.cut_decoder(CO_PRUNE, replace(view, num_clusters=7))
    exact = OFFICIAL.cut_decoder(CO_PRUNE, view)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(parts(spare), parts(exact), strict=True))


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_gradients_reach_the_hidden_states(decoder_view: Callable[..., DecoderView], method: ViTCoP) -> None:
    view = decoder_view([20], 4)
    view.hidden.requires_grad_()
    view.keys.requires_grad_()
    chosen = method.cut_decoder(CO_PRUNE, view)
    assert chosen.hidden is not None
    (grad,) = torch.autograd.grad(chosen.hidden.sum(), view.hidden)
    assert (grad != 0).all()


def test_co_prune_without_labels_raises(decoder_view: Callable[..., DecoderView]) -> None:
    with pytest.raises(ValueError, match="labels must be given for a co_prune cut"):
        PAPER.cut_decoder(CO_PRUNE, replace(decoder_view([20], 4), labels=None))


def test_a_method_that_plans_no_cut_says_so(
    vision_view: Callable[..., VisionView], decoder_view: Callable[..., DecoderView]
) -> None:
    class KeepAll(Method):
        def plan(self, num_layers: int, visual_tokens: Any, *, images: int = 1) -> Plan:
            return identity_plan(num_layers, (visual_tokens,))

    with pytest.raises(NotImplementedError, match="KeepAll plans no cut before"):
        KeepAll().cut_vision(vision_view(), 3, 0)
    with pytest.raises(NotImplementedError, match="KeepAll plans no cut inside"):
        KeepAll().cut_decoder(TOP, decoder_view([20], 4))


@pytest.mark.parametrize("method", [PAPER, OFFICIAL], ids=["paper", "official"])
def test_half_precision_views_give_the_choices_of_their_values(
    vision_view: Callable[..., VisionView], method: ViTCoP
) -> None:
    half = vision_view(dtype=torch.bfloat16)
    assert half.query_cls is not None
    wide = replace(half, query_cls=half.query_cls.float(), keys=half.keys.float(), hidden=half.hidden.float())
    mine, theirs = (method.cut_vision(view, 12, 4) for view in (half, wide))
    assert mine.clusters is not None
    assert theirs.clusters is not None
    assert torch.equal(mine.index, theirs.index)
    assert all(torch.equal(a, b) for a, b in zip(mine.clusters, theirs.clusters, strict=True))


def test_cutoff_scale_is_the_median_distance() -> None:
    corners = torch.tensor([[[0.0, 0.0], [16.0, 0.0], [0.0, 16.0]]])
    scale = cutoff_scale(corners)
    assert scale.shape == (1,)
    assert scale.item() == 2.0
    assert CUTOFF_SCALE_RANGE[0] < scale.item() < CUTOFF_SCALE_RANGE[1]
    assert cutoff_scale(corners, 4.0).item() == 4.0


RAGGED = {
    "paper": PAPER,
    "official": OFFICIAL,
    "vision_hidden": replace(PAPER, vic_features="vision_hidden"),
    "received": replace(PAPER, vision_saliency="received"),
}


@pytest.mark.parametrize("method", RAGGED.values(), ids=RAGGED)
def test_units_that_use_parts_of_their_grid_are_cut_as_alone(
    vision_view: Callable[..., VisionView], method: ViTCoP
) -> None:
    view = vision_view()
    eligible = torch.stack([torch.arange(24), torch.arange(24) + 5])
    lengths, keeps, clusters = torch.tensor([24, 9]), torch.tensor([10, 4]), torch.tensor([4, 2])
    chosen = method.cut_vision(replace(view, eligible=eligible, lengths=lengths), 10, 4, keeps, clusters)
    assert chosen.clusters is not None
    for unit in range(2):
        length, keep, labels = (int(counts[unit]) for counts in (lengths, keeps, clusters))
        own = slice(unit, unit + 1)
        patches = view.positions.shape[1]
        alone = VisionView(
            None if view.query_cls is None else view.query_cls[own],
            view.keys[own],
            view.scale,
            view.positions[own],
            view.hidden[own],
            eligible[own, :length],
            queries=lambda own=own: view.queries()[own],  # type: ignore[misc]
        )
        wanted = method.cut_vision(alone, keep, labels)
        assert wanted.clusters is not None
        assert set(wanted.index[0].tolist()) <= set(eligible[unit, :length].tolist())
        assert torch.equal(chosen.index[unit, :keep], wanted.index[0])
        assert bool((chosen.index[unit, keep:] == patches).all())
        assert torch.equal(chosen.clusters.labels[unit, :keep], wanted.clusters.labels[0])
        assert bool((chosen.clusters.labels[unit, keep:] == -1).all())


def test_unit_of_padding_alone_keeps_nothing(vision_view: Callable[..., VisionView]) -> None:
    view = replace(vision_view(), eligible=torch.zeros(2, 6, dtype=torch.int64), lengths=torch.tensor([0, 1]))
    chosen = PAPER.cut_vision(view, 1, 1, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert chosen.index.tolist() == [[36], [0]]
    assert chosen.clusters is not None
    assert chosen.clusters.labels.tolist() == [[-1], [0]]
