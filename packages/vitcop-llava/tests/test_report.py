"""The report's numbers, and the patches that survived."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitcop_llava
from vitcop_llava import DivPrune, FeatureScaleWarning, Report, VisionZip
from vitcop_llava.report import RowReport

Make = Callable[..., Tensor]


def test_report_counts_what_a_batch_kept(model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any) -> None:
    rows, method = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)], budget()
    with vitcop_llava.prune(model, method) as pruner:
        assert "nothing has run yet" in str(pruner.report)
        assert not pruner.report.rows
        model(**pad(rows), pixel_values=pictures(3))
    report = pruner.report
    assert report.pruned
    assert report.note is None
    assert [row.images for row in report.rows] == [1, 2, 0]
    assert report.rows[0].plan == method.plan(8, 144)
    assert report.rows[1].plan == method.plan(8, (144, 144), images=2)
    assert report.rows[2].plan is None
    assert [(stage.name, stage.layer) for stage in report.rows[0].stages] == [
        ("Stage I", None),
        ("Stage II", 1),
        ("Stage III", 6),
    ]
    assert "no image, runs unpruned" in str(report)


def test_report_costs_are_the_plans(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with vitcop_llava.prune(model, budget("1/3")) as pruner:
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
    report: Any = pruner.report
    plan, shape = report.rows[0].plan, report.shape
    whole = vitcop_llava.Plan(num_layers=8, units=(144,), vision=None, decoder=())
    assert (shape.num_layers, shape.hidden_size, shape.num_kv_heads, shape.head_dim) == (8, 32, 2, 8)
    assert report.rows[0].text_tokens == 12
    assert report.macs() == (plan.macs(shape, 12), whole.macs(shape, 12))
    assert report.kv_bytes() == (plan.kv_bytes(shape, 12, 4), whole.kv_bytes(shape, 12, 4))
    assert f"{float(plan.average_tokens):.2f} on average" in str(report)


def counted(model: Any, given: dict[str, Any]) -> tuple[int, int, Any]:
    """The multiply-accumulates of all decoder layers in one call, the bytes of its cache, and the output."""
    macs, handles, config = 0, [], model.model.language_model.config

    def product(module: nn.Linear, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal macs
        macs += args[0].numel() * module.out_features

    def attention(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal macs
        (rows, queries), keys = (
            kwargs["hidden_states"].shape[:2],
            kwargs["past_key_values"].layers[module.layer_idx].keys,
        )
        macs += 2 * rows * queries * keys.shape[2] * config.num_attention_heads * module.head_dim

    for layer in model.model.language_model.layers:
        handles += [part.register_forward_hook(product) for part in layer.modules() if isinstance(part, nn.Linear)]
        handles.append(layer.self_attn.register_forward_hook(attention, with_kwargs=True))
    output = model(**given)
    for handle in handles:
        handle.remove()
    held = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in output.past_key_values.layers)
    return macs, held, output


@pytest.mark.parametrize("method", [None, DivPrune(retained_tokens=24), VisionZip(retained_tokens=24)], ids=repr)
def test_report_costs_are_what_ran(
    model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, method: Any
) -> None:
    """Rows with other images and with none, padding, and a later turn included."""
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    first = {**pad(rows), "pixel_values": pictures(3)}
    ids = torch.cat([prompt("image", 5, seed=3)] * 3)
    mask = torch.cat([first["attention_mask"], torch.ones_like(ids)], dim=1)
    second = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(3, seed=1)}
    unpruned = [counted(model, first)]
    unpruned.append(counted(model, second | {"past_key_values": unpruned[0][2].past_key_values}))
    with vitcop_llava.prune(model, method or budget()) as pruner:
        for given, (macs, held, _) in zip((first, second), unpruned, strict=True):
            own, kept, output = counted(model, given)
            second["past_key_values"] = output.past_key_values
            assert pruner.report.macs() == (own, macs)
            assert pruner.report.kv_bytes() == (kept, held)


def test_report_keeps_the_prefill_through_decoding_and_text_turns(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    ids = prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget()) as pruner:
        output = model(input_ids=ids, pixel_values=pictures())
        first = pruner.report
        model(input_ids=prompt(4), past_key_values=output.past_key_values)
        assert pruner.report == first
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures(), max_new_tokens=3)
        assert pruner.report == first


def test_text_only_prompt_runs_unpruned_and_says_so(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    wanted = model(input_ids=prompt(9)).logits
    with vitcop_llava.prune(model, budget()) as pruner:
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
        assert torch.equal(model(input_ids=prompt(9)).logits, wanted)
        assert not pruner.report.pruned
        assert "text-only" in str(pruner.report)
        with pytest.raises(ValueError, match="must be of a call that pruned an image"):
            pruner.survivors()


@pytest.mark.parametrize("share", ["1/3", "1/9"])
def test_survivors_shrink_from_stage_to_stage(
    model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, share: str
) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    with vitcop_llava.prune(model, budget(share)) as pruner:
        model(**pad(rows), pixel_values=pictures(3))
        batch = [pruner.survivors(row) for row in range(2)]
        with pytest.raises(ValueError, match="row must be one of the 3 rows and hold an image"):
            pruner.survivors(2)
        with pytest.raises(ValueError, match="row must be"):
            pruner.survivors(3)
        plans: list[Any] = [row.plan for row in pruner.report.rows]
        model(input_ids=rows[1], pixel_values=pictures(3)[1:])
        alone = pruner.survivors()
    for found, plan in zip(batch, plans, strict=False):
        kept = [set(stage.patches.tolist()) for stage in found.stages]
        assert [len(stage) for stage in kept] == [plan.entry_tokens, *(cut.keep for cut in plan.decoder)]
        assert kept[2] <= kept[1] <= kept[0] <= set(range(plan.visual_tokens))
        assert int((found.clusters >= 0).sum()) == plan.entry_tokens
        assert len(found.clusters[found.clusters >= 0].unique()) == plan.num_clusters
        assert int(found.stages[1].merged.sum()) == plan.num_clusters
        assert not found.stages[2].merged.any()
    for one, other in zip(batch[1].stages, alone.stages, strict=True):
        assert torch.equal(one.patches, other.patches)
        assert torch.equal(one.merged, other.merged)
    assert torch.equal(batch[1].clusters, alone.clusters)


@pytest.mark.parametrize("cutoff", [0.02, 400.0])
def test_cutoff_distance_off_scale_warns(model: Any, prompt: Make, pictures: Make, budget: Any, cutoff: float) -> None:
    with vitcop_llava.prune(model, budget(cutoff_distance=cutoff)) as pruner:
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
    with pytest.warns(FeatureScaleWarning, match=f"cutoff_distance={cutoff:g}, outside"):
        assert pruner.report.distance_ratio is not None


def test_cutoff_distance_on_scale_or_unused_does_not_warn(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()) as pruner:
        model(**given)
        ratio = pruner.report.distance_ratio
        assert ratio is not None
        assert 0.3 < ratio < 4
    for unused in ({"clustering": False}, {"vic_features": "vision_hidden"}):
        with vitcop_llava.prune(model, budget(cutoff_distance=0.01, **unused)) as pruner:
            model(**given)
            assert pruner.report.distance_ratio is None


def test_report_says_which_cutoff_distance_was_used(
    build: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, recwarn: pytest.WarningsRecorder
) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    used = {}
    for tower in ("clip", "siglip"):
        for cutoff in (3.0, 5, "auto", None):
            with vitcop_llava.prune(build(tower=tower), budget(cutoff_distance=cutoff)) as pruner:
                build(tower=tower)(**given)
                report = pruner.report
            used[tower, cutoff] = report.cutoff_distance
            assert f"clustered by a cutoff distance of {report.cutoff_distance:.4g}\n" in str(report)
            # What fits by itself is not diagnosed.
            assert (report.distance_ratio is None) == (cutoff == "auto" or (tower, cutoff) == ("siglip", None))
    assert used["clip", None] == 8
    assert used["siglip", None] == used["siglip", "auto"] != 8
    assert all(used[tower, cutoff] == cutoff for tower in ("clip", "siglip") for cutoff in (3.0, 5))
    with vitcop_llava.prune(build(), budget(clustering=False)) as pruner:
        build()(**given)
        assert pruner.report.cutoff_distance is None
        assert "cutoff" not in str(pruner.report)


@pytest.mark.parametrize("name", ["images", "text_tokens", "newlines", "newlines_kept"])
@pytest.mark.parametrize(
    "count", [10**400, 10**5000, -1, 1.5, True, "1"], ids=["huge", "long", "-1", "1.5", "True", "text"]
)
def test_count_that_is_none_is_refused(name: str, count: Any) -> None:
    counts: dict[str, Any] = {"images": 1, "text_tokens": 3, "newlines": 0, "newlines_kept": 0}
    with pytest.raises((TypeError, ValueError), match=f"{name} must be an integer"):
        RowReport(plan=None, **{**counts, name: count})


def test_report_of_the_largest_counts_can_be_read() -> None:
    most = 2**31 - 1
    shape = vitcop_llava.LanguageModelShape(10_000, most, most, most, most, most)
    plan = vitcop_llava.Plan(num_layers=10_000, units=(most,) * 3, vision=None, decoder=())
    for rows in ((RowReport(1, plan, most, most, most),), (RowReport(0, None, 0),)):
        assert "prefill: " in str(Report(vitcop_llava.ViTCoP(retained_tokens=64), rows, shape, most, None, None))
    with pytest.raises(ValueError, match="bytes_per_element must be an integer"):
        Report(vitcop_llava.ViTCoP(retained_tokens=64), (), shape, 10**400, None, None)


@pytest.mark.parametrize("row", [10**400, 10**5000, -1, 1, 0.0, True, None, "0"], ids=range(8))
def test_row_that_is_none_is_refused(model: Any, prompt: Make, pictures: Make, budget: Any, row: Any) -> None:
    with vitcop_llava.prune(model, budget()) as pruner:
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
    with pytest.raises((TypeError, ValueError), match="row must be"):
        pruner.survivors(row)
