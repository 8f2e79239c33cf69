"""LLaVA-NeXT-Video: Stage I frame by frame, told again slowly beside the model's own pooling, and who shares what."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import vitcop_llava
from vitcop_core import ops
from vitcop_llava import Tiling, ViTCoP

Inputs = Callable[..., dict[str, Any]]


def tower_of(model: Any, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CLS attention ``[F, 16]``, keys ``[F, 16, d]`` and projected features ``[F, 16, d]`` of every pooled token."""
    tower = model.model.vision_tower
    states = tower(frames, output_hidden_states=True).hidden_states
    block = tower.encoder.layers[2]
    normed = block.layer_norm1(states[2])
    queries, keys = (getattr(block.self_attn, name)(normed) for name in ("q_proj", "k_proj"))
    split = [part.unflatten(-1, (4, 8)) for part in (queries[:, :1], keys)]
    scores = (torch.einsum("cqhe,cnhe->chn", *split) / math.sqrt(8)).softmax(-1).sum(1)[:, 1:, None]

    def pooled(values: Tensor) -> Tensor:
        laid = values.transpose(1, 2).unflatten(2, (8, 8))
        return functional.avg_pool2d(laid, 2).flatten(2).transpose(1, 2)

    features = model.model.multi_modal_projector(model.model.vision_resampler(states[3][:, 1:]))
    return pooled(scores)[..., 0], pooled(keys[:, 1:]), features


@pytest.mark.parametrize("mode", ["average", "max"])
def test_stage_one_acts_on_what_enters_the_projector(
    build_video: Callable[..., Any], video_inputs: Inputs, budget: Any, mode: str
) -> None:
    model, inputs, method = build_video(mode=mode), video_inputs([[2, "clip4", 3]]), budget("1/3")
    with vitcop_llava.prune(model, method) as pruner:
        output, found = model(**inputs, output_hidden_states=True), pruner.survivors()
    plan = method.plan(8, (16,) * 4)
    saliency, keys, features = tower_of(model, inputs["pixel_values_videos"][0])
    kept, labels = torch.zeros((4, 16), dtype=torch.bool), torch.full((4, 16), -1)
    for frame, (keep, clusters) in enumerate(zip(plan.vision.keep, plan.vision.clusters, strict=True)):
        best = saliency[frame].topk(keep).indices.sort().values
        places = torch.stack([best // 4, best % 4], dim=1) / 4
        own = ops.vic(keys[frame, best][None], places[None], clusters, cutoff_distance=3.0).labels[0]
        kept[frame, best], labels[frame, best] = True, own + frame * clusters
    assert torch.equal(found.stages[0].patches, kept.flatten().nonzero()[:, 0])
    assert torch.equal(found.clusters, labels.flatten())
    wanted = torch.where(kept[..., None], features, 0.0).flatten(0, 1)
    # The last placeholder shows the last token that stayed.
    torch.testing.assert_close(output.hidden_states[0][0, 3:66], wanted[:-1], atol=1e-5, rtol=0)


def test_counts_are_those_of_the_released_model() -> None:
    tiling = Tiling((12, 12), frames=8)
    assert (tiling.units, tiling.tokens, tiling.newlines) == ((144,) * 8, 1152, 0)
    plan: Any = ViTCoP(retention_ratio=1 / 9).plan(32, tiling.units)
    assert plan.vision.keep == (43,) * 8
    assert plan.vision.clusters == (6,) * 8
    assert [cut.keep for cut in plan.decoder] == [154, 30]


@pytest.mark.parametrize("settings", [{}, {"change_share": 1, "cluster_frames": 3}], ids=["paper", "temporal"])
def test_lengths_in_the_cache_are_the_plans(
    video_model: Any, video_inputs: Inputs, budget: Any, settings: dict[str, Any]
) -> None:
    for frames in (1, 2, 5, 8):
        method, inputs = budget("1/3", **settings), video_inputs([[2, f"clip{frames}", 3]])
        plan = method.plan(8, (16,) * frames)
        with vitcop_llava.prune(video_model, method) as pruner:
            cache = video_model(**inputs).past_key_values
            survivors = pruner.survivors()
        assert [layer.keys.shape[2] for layer in cache.layers] == [tokens + 6 for tokens in plan.tokens_per_layer]
        assert len(survivors.stages[0].patches) == plan.entry_tokens
        assert int((survivors.clusters >= 0).sum()) == plan.entry_tokens


def test_only_kept_tokens_are_projected(video_model: Any, video_inputs: Inputs, budget: Any) -> None:
    seen: list[int] = []
    hook = video_model.model.multi_modal_projector.linear_1.register_forward_hook(
        lambda module, args, output: seen.append(output[..., 0].numel())
    )
    try:
        with vitcop_llava.prune(video_model, budget("1/3")) as pruner:
            video_model(**video_inputs([[2, "clip4", 3], ["clip2", 1, (64, 64), 2]]))
            plans = [row.plan for row in pruner.report.rows]
    finally:
        hook.remove()
    assert sum(seen) == sum(plan.entry_tokens for plan in plans if plan is not None)


@pytest.mark.parametrize("first", ["picture", "clip"])
def test_pictures_and_clips_of_a_row_enter_as_alone_and_are_cut_together(
    video_model: Any, video_inputs: Inputs, budget: Any, first: str
) -> None:
    method = budget("1/3")
    row: list[Any] = [2, (64, 64), 1, "clip4", 3] if first == "picture" else [2, "clip4", 1, (64, 64), 3]
    inputs = video_inputs([row])
    with vitcop_llava.prune(video_model, method) as pruner:
        video_model(**inputs)
        found, (report,) = pruner.survivors(), pruner.report.rows
        picture, clip = ({**inputs, "input_ids": _only(inputs["input_ids"], token)} for token in (98, 99))
        for given, left_out in ((picture, "pixel_values_videos"), (clip, "pixel_values")):
            given.pop(left_out)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        alone = []
        for given in (picture, clip):
            video_model(**given)
            alone.append(pruner.survivors())
    # Images are counted before clips, wherever they stand; survivors come in the order of the prompt.
    entered = [alone[0].stages[0].patches, alone[1].stages[0].patches + alone[0].patches]
    assert torch.equal(found.stages[0].patches, torch.cat(entered if first == "picture" else entered[::-1]))
    clusters = int(alone[0].clusters.max()) + 1
    shifted = torch.where(alone[1].clusters >= 0, alone[1].clusters + clusters, -1)
    assert torch.equal(found.clusters, torch.cat([alone[0].clusters, shifted]))
    assert report.images == 2
    assert report.plan is not None
    assert report.plan.decoder == method.plan(8, report.plan.units, images=2).decoder


def _only(ids: Tensor, token: int) -> Tensor:
    other = 98 + 99 - token
    return ids[ids != other][None]


# Rounding chains: with these ratios few units lose nothing in Stage II and are not clustered, many are.
CHAINED: dict[str, Any] = {"ratios": (0.5, 0.4975, 0.2), "counts": "chained"}
UNCLUSTERED: dict[str, tuple[list[list[Any]], dict[str, Any]]] = {
    "clip-beside-picture": ([[2, (128, 128), 1, "clip4", 3], ["clip4", 2]], {}),
    "picture-beside-clip": ([[2, (64, 64), 1, "clip16", 3], [(64, 64), 2]], {}),
    "clip-beside-clip": ([["clip4", 1, "clip16", 3], [2, "clip16", "clip3", 3]], {}),
    "shared-out": ([["clip4", 1, "clip16", 3], [2, "clip16", "clip3", 3]], {"change_share": 1, "cluster_frames": 3}),
}


@pytest.mark.parametrize("case", UNCLUSTERED)
def test_labels_of_a_row_never_collide(
    video_model: Any, video_inputs: Inputs, budget: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, extra = UNCLUSTERED[case]
    method, seen = budget(**CHAINED, **extra), []
    original = ViTCoP.cut_decoder

    def cut_decoder(self: ViTCoP, cut: Any, view: Any, keeps: Any = None) -> Any:
        if cut.stage == "co_prune":
            seen.append((view.labels, view.num_clusters))
        return original(self, cut, view, keeps)

    monkeypatch.setattr(ViTCoP, "cut_decoder", cut_decoder)
    together = video_inputs(batch)
    with vitcop_llava.prune(video_model, method) as pruner:
        logits = video_model(**together).logits
        ((labels, clusters),), plans = seen, [row.plan for row in pruner.report.rows]
        for number, row in enumerate(batch):
            alone = video_model(**video_inputs([row])).logits[0]
            mask = together["attention_mask"][number].bool()
            torch.testing.assert_close(logits[number][mask], alone, atol=1e-5, rtol=0)
    assert int(labels.max()) < clusters
    # What is not clustered beside what is stands for itself: as many labels of one token as it has tokens.
    for own, plan in zip(labels, plans, strict=True):
        assert plan is not None
        assert plan.vision is not None
        itself = sum(keep for keep, some in zip(plan.vision.keep, plan.vision.clusters, strict=True) if not some)
        if any(plan.vision.clusters):
            assert int((own[own >= 0].bincount() == 1).sum()) >= itself > 0


def test_clips_of_one_length_may_come_as_a_list(video_model: Any, video_inputs: Inputs, budget: Any) -> None:
    batch: list[list[Any]] = [[2, "clip4", 3], [1, "clip4", 4]]
    with vitcop_llava.prune(video_model, budget("1/3")):
        tensor, listed = (video_model(**video_inputs(batch, listed=listed)).logits for listed in (False, True))
    torch.testing.assert_close(tensor, listed, atol=1e-5, rtol=0)


def test_report_counts_frames_and_text(video_model: Any, video_inputs: Inputs, budget: Any) -> None:
    with vitcop_llava.prune(video_model, budget("1/3")) as pruner:
        video_model(**video_inputs([[2, "clip4", 3], ["clip2", 8]]))
        first, second = pruner.report.rows
        text = str(pruner.report)
    assert [row.plan.units for row in (first, second) if row.plan is not None] == [(16,) * 4, (16,) * 2]
    assert (first.text_tokens, second.text_tokens) == (6, 38)
    assert "row 1: 32 visual tokens" in text


def test_grid_that_pooling_does_not_divide_loses_its_last_lines(build_video: Callable[..., Any], budget: Any) -> None:
    model = build_video(side=56)  # 7 x 7 patches, 3 x 3 tokens
    pixels = torch.randn(1, 2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, *[99] * 18, 5]])
    with torch.no_grad(), vitcop_llava.prune(model, budget("1/2")) as pruner:
        model(input_ids=ids, pixel_values_videos=pixels)
        assert pruner.report.rows[0].plan == budget("1/2").plan(8, (9, 9))
