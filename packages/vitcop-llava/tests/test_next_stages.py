"""LLaVA-NeXT: Stage I tile by tile, and where everything ends up, told again slowly beside transformers' packing."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_core import ops
from vitcop_llava import ViTCoP, tile_image

Inputs = Callable[..., dict[str, Any]]


def tower_of(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CLS attention ``[C, m]``, keys ``[C, m, d]`` and projected features ``[C, m, d]`` of every patch."""
    tower = model.model.vision_tower
    states = tower(pixels, output_hidden_states=True).hidden_states
    block = tower.encoder.layers[2]
    normed = block.layer_norm1(states[2])
    queries, keys = (getattr(block.self_attn, name)(normed) for name in ("q_proj", "k_proj"))
    split = [part.unflatten(-1, (4, 8)) for part in (queries[:, :1], keys)]
    scores = torch.einsum("cqhe,cnhe->chn", *split) / math.sqrt(8)
    return scores.softmax(-1).sum(1)[:, 1:], keys[:, 1:], model.model.multi_modal_projector(states[3][:, 1:])


def in_order(model: Any, values: Tensor, size: list[int], newline: float) -> Tensor:
    """``[C, m]`` in the order of transformers' packing, ``newline`` at the newlines."""
    given = values.double()[..., None]
    (packed,), _ = model.model.pack_image_features([given], [size], "default", torch.tensor([newline]).double())
    order: Tensor = packed[:, 0].long()
    return order


@pytest.mark.parametrize("keep_newline", [False, True])
@pytest.mark.parametrize("size", [(96, 96), (131, 77), (10, 90), (150, 31), (200, 9), (96, 47)], ids=str)
def test_stage_one_goes_by_tiles(
    next_model: Any, next_inputs: Inputs, budget: Any, size: tuple[int, int], keep_newline: bool
) -> None:
    inputs, method = next_inputs([[2, size, 3]]), budget("1/6")
    with vitcop_llava.prune(next_model, method, keep_newline=keep_newline) as pruner:
        output = next_model(**inputs, output_hidden_states=True)
        found, plan = pruner.survivors(), method.plan(8, tiling_of(size).units)
    tiling, pixels = tiling_of(size), inputs["pixel_values"][0]
    saliency, keys, features = tower_of(next_model, pixels[: len(tiling.boxes)])
    kept, labels = torch.zeros(saliency.shape, dtype=torch.bool), torch.full(saliency.shape, -1)
    counts, before = iter(zip(plan.vision.keep, plan.vision.clusters, strict=True)), 0
    for unit in range(len(tiling.boxes)):
        eligible = torch.tensor(tiling.mask(unit)).flatten().nonzero()[:, 0]
        if len(eligible):
            keep, clusters = next(counts)
            best = eligible[saliency[unit, eligible].topk(keep).indices.sort().values]
            places = torch.stack([best // 6, best % 6], dim=1) / 6
            kept[unit, best] = True
            labels[unit, best] = ops.vic(keys[unit, best][None], places[None], clusters, cutoff_distance=3.0).labels[0]
            labels[unit, best] += before
            before += clusters

    height, width = size[::-1]
    number = in_order(next_model, torch.arange(kept.numel()).view_as(kept), [height, width], -1)
    patches = number[number >= 0]
    assert torch.equal(found.stages[0].patches, kept.flatten()[patches].nonzero()[:, 0])
    assert torch.equal(found.clusters, labels.flatten()[patches])

    first = int((inputs["input_ids"][0] == next_model.config.image_token_id).nonzero()[0])
    entered = output.hidden_states[0][0, first : first + len(number)]
    wanted = torch.where(kept.flatten()[number.clamp(min=0)][:, None], features.flatten(0, 1)[number], 0.0)
    has_columns = tiling.window[2] < tiling.window[3]
    wanted[number < 0] = next_model.model.image_newline if keep_newline and has_columns else 0.0
    # The last placeholder shows the last token that stayed.
    torch.testing.assert_close(entered[:-1], wanted[:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(96, 96), (131, 77), (40, 150)])
def test_newlines_stay_where_stage_one_keeps_every_patch(
    next_model: Any, next_inputs: Inputs, size: tuple[int, int]
) -> None:
    """A cut inside the language model takes them for text, as it does where Stage I drops something."""
    inputs, method = next_inputs([[2, size, 3]]), ViTCoP(retention_ratio=Fraction(4, 5), cutoff_distance=3.0)
    with vitcop_llava.prune(next_model, method, keep_newline=True) as pruner:
        next_model(**inputs)
        plan, kept = pruner.report.rows[0].plan, pruner.survivors().stages[-1].patches
    assert plan is not None
    assert plan.vision is None or plan.entry_tokens == plan.visual_tokens
    assert pruner._last is not None
    assert pruner._last.outcome is not None
    segment, tiling = pruner._last.outcome.segments[-1], tiling_of(size)
    first = int((inputs["input_ids"][0] == next_model.config.image_token_id).nonzero()[0, 0])
    newlines = {first + place for place in tiling.newline_places}
    patches = [first + place for place in range(tiling.placeholders) if first + place not in newlines]
    columns = segment.columns[0].tolist()
    assert newlines <= {*columns}
    assert sorted(columns[slot] for slot in segment.visual[0].tolist()) == [patches[number] for number in kept]
    assert len(columns) == inputs["input_ids"].shape[1] - tiling.tokens + plan.decoder[-1].tokens


def tiling_of(size: tuple[int, int]) -> Any:
    points = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
    return tile_image(size[1], size[0], pinpoints=points, tile_size=48, patch_size=8)


def test_only_kept_patches_are_projected(next_model: Any, next_inputs: Inputs, budget: Any) -> None:
    seen: list[int] = []
    inputs = next_inputs([[2, (131, 77), 3], [(10, 90), 1, (96, 96), 2]])
    hook = next_model.model.multi_modal_projector.linear_1.register_forward_hook(
        lambda module, args, output: seen.append(output[..., 0].numel())
    )
    try:
        with vitcop_llava.prune(next_model, budget("1/6")) as pruner:
            next_model(**inputs)
            plans = [row.plan for row in pruner.report.rows]
    finally:
        hook.remove()
    assert seen == [sum(plan.entry_tokens for plan in plans if plan is not None)]


def test_images_of_a_row_enter_as_alone_and_are_cut_together(next_model: Any, next_inputs: Inputs) -> None:
    # With a budget in tokens the small image keeps a larger share, and has no Stage II of its own.
    method = vitcop_llava.ViTCoP(retained_tokens=24, cutoff_distance=3.0)
    sizes = [(96, 96), (200, 9)]
    with vitcop_llava.prune(next_model, method) as pruner:
        next_model(**next_inputs([[2, *sizes, 3]]))
        plan: Any = pruner.report.rows[0].plan
    alone: list[Any] = [method.plan(8, tiling_of(size).units) for size in sizes]
    whole = method.plan(8, plan.units, images=2)
    assert alone[1].vision.clusters == (0,)
    assert plan.vision.keep == (*alone[0].vision.keep, *alone[1].vision.keep)
    assert plan.decoder == whole.decoder
    assert 44 < float(plan.average_tokens) <= 50


def test_cut_that_no_image_has_alone_merges_single_tokens(model: Any, prompt: Any, pictures: Any) -> None:
    # Rounding chains: one image loses nothing in Stage II, two together a token.
    settings: dict[str, Any] = {"counts": "chained", "cutoff_distance": 3.0}
    method = vitcop_llava.ViTCoP(ratios=(0.05, 0.0475, 0.02), **settings)
    assert [cut.stage for cut in method.plan(8, 144).decoder] == ["top_tokens"]
    assert method.plan(8, (144,) * 3, images=3).decoder[0].stage == "co_prune"
    with vitcop_llava.prune(model, method) as pruner:
        logits = model(input_ids=prompt(2, "image", "image", 1, "image", 4), pixel_values=pictures(3)).logits
        assert [stage.tokens for stage in pruner.report.rows[0].stages][:2] == [21, 20]
    assert logits.isfinite().all()
