"""Plans: their arithmetic, and what they refuse to be."""

from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from typing import Any

import pytest

from vitcop_core import DecoderCut, LanguageModelShape, Plan, VisionCut, ViTCoP, identity_plan, pooled_plan

SHAPE_7B = LanguageModelShape(32, 4096, 11008, 32, 32, 128)
SHAPE_13B = LanguageModelShape(40, 5120, 13824, 40, 40, 128)
PLAN = Plan(
    num_layers=8,
    units=(16, 9),
    vision=VisionCut((8, 4), (2, 1)),
    decoder=(DecoderCut(2, 6, "co_prune"), DecoderCut(6, 2, "top_tokens")),
)


def test_plan_counts_tokens_by_layer() -> None:
    assert PLAN.visual_tokens == 25
    assert PLAN.entry_tokens == 12
    assert PLAN.num_clusters == 3
    assert PLAN.tokens_per_layer == (12, 12, 6, 6, 6, 6, 2, 2)
    assert PLAN.average_tokens == Fraction(52, 8)
    assert not PLAN.is_identity


def test_identity_plan_keeps_everything() -> None:
    plan = identity_plan(4, (5, 6))
    assert plan.is_identity
    assert plan.entry_tokens == plan.visual_tokens == 11
    assert plan.tokens_per_layer == (11,) * 4
    assert plan.num_clusters == 0


def test_clustering_alone_is_no_identity() -> None:
    plan = Plan(4, (5,), VisionCut((5,), (2,)), (DecoderCut(1, 3, "co_prune"),))
    assert plan.entry_tokens == 5
    assert not plan.is_identity


@pytest.mark.parametrize(
    ("shape", "retained", "bare", "with_text"),
    [
        (SHAPE_7B, 576, "3.82", "4.22"),
        (SHAPE_7B, 192, "1.25", "1.65"),
        (SHAPE_7B, 128, "0.83", "1.23"),
        (SHAPE_7B, 64, "0.41", "0.80"),
        (SHAPE_7B, 32, "0.20", "0.60"),
        (SHAPE_13B, 576, "7.44", "8.24"),
        (SHAPE_13B, 192, "2.45", "3.23"),
        (SHAPE_13B, 128, "1.63", "2.40"),
        (SHAPE_13B, 64, "0.80", "1.57"),
        (SHAPE_13B, 32, "0.40", "1.16"),
    ],
    ids=lambda value: str(value.num_layers) if isinstance(value, LanguageModelShape) else str(value),
)
def test_macs_are_those_of_the_released_counter(
    shape: LanguageModelShape, retained: int, bare: str, with_text: str
) -> None:
    plan = ViTCoP(retained_tokens=retained).plan(shape.num_layers, 576)
    assert f"{plan.macs(shape, 0) / 1e12:.2f}" == bare
    assert f"{plan.macs(shape, 60) / 1e12:.2f}" == with_text


def test_macs_match_the_closed_form_without_grouped_queries() -> None:
    tokens, width, inner = 636, 4096, 11008
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 3 * tokens * width * inner
    assert identity_plan(32, (576,)).macs(SHAPE_7B, 60) == 32 * layer


def test_grouped_queries_project_fewer_keys_and_values() -> None:
    grouped = replace(SHAPE_7B, num_kv_heads=8)
    plan = identity_plan(32, (576,))
    assert plan.macs(SHAPE_7B, 0) - plan.macs(grouped, 0) == 32 * 2 * 576 * 4096 * 24 * 128


def test_kv_bytes_follow_the_cuts() -> None:
    shape = LanguageModelShape(8, 64, 128, 4, 2, 16)
    assert PLAN.kv_bytes_per_layer(shape, 3) == tuple(2 * 2 * 16 * 2 * (n + 3) for n in PLAN.tokens_per_layer)
    assert PLAN.kv_bytes(shape, 3, bytes_per_element=4) == 2 * sum(PLAN.kv_bytes_per_layer(shape, 3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_layers": 6}, "layer must be in"),
        ({"units": (7, 9)}, "vision.keep must be at most"),
        ({"units": ()}, "units must be at least one count"),
        ({"units": (16, 0)}, "units must be an integer >= 1"),
        ({"decoder": (DecoderCut(2, 12, "co_prune"),)}, "keep must be less than the 12 tokens"),
        ({"decoder": PLAN.decoder[::-1]}, "keep must be less|layer must be in"),
    ],
    ids=["shallow", "grows", "no units", "empty unit", "keeps all", "order"],
)
def test_plan_rejects_cuts_that_do_not_fit(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(PLAN, **change)


def test_cuts_reject_counts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="clusters must be 2 counts"):
        VisionCut((3, 4), (1,))
    with pytest.raises(ValueError, match="keep must be an integer >= 1"):
        VisionCut((0,), (1,))
    with pytest.raises(ValueError, match="layer must be an integer from 1 to 10000, got 0"):
        DecoderCut(0, 3, "top_tokens")
    with pytest.raises(TypeError, match="keep must be an integer"):
        DecoderCut(1, True, "top_tokens")


def test_costs_reject_another_model() -> None:
    with pytest.raises(ValueError, match="shape must be a model of 8 layers, got 32"):
        PLAN.macs(SHAPE_7B, 0)
    with pytest.raises(ValueError, match="text_tokens"):
        identity_plan(32, (1,)).macs(SHAPE_7B, -1)
    with pytest.raises(ValueError, match="num_heads must be an integer >= 1"):
        replace(SHAPE_7B, num_heads=0)
    with pytest.raises(TypeError, match="head_dim"):
        replace(SHAPE_7B, head_dim=128.0)  # type: ignore[arg-type]


def test_pooled_plan_enters_images_as_alone_and_cuts_them_together() -> None:
    images = [ViTCoP(retained_tokens=64).plan(32, units) for units in ((576, 576), (300,))]
    whole = ViTCoP(retained_tokens=64).plan(32, (576, 576, 300), images=2)
    pooled = pooled_plan(whole, images)
    assert pooled.vision is not None
    assert [pooled.vision.keep, pooled.vision.clusters] == [
        sum((image.vision.keep for image in images if image.vision), ()),
        sum((image.vision.clusters for image in images if image.vision), ()),
    ]
    assert pooled.decoder == whole.decoder
    assert abs(pooled.average_tokens - 128) < 2


def test_pooled_plan_leaves_out_a_cut_that_would_keep_everything() -> None:
    image = Plan(8, (6,), VisionCut((2,), (0,)), ())
    whole = Plan(8, (6, 6), None, (DecoderCut(2, 4, "top_tokens"), DecoderCut(6, 3, "top_tokens")))
    assert pooled_plan(whole, [image, image]).decoder == (DecoderCut(6, 3, "top_tokens"),)
    assert pooled_plan(identity_plan(8, (6, 6)), [identity_plan(8, (6,))] * 2).is_identity


def test_pooled_plan_rejects_other_units_or_layers() -> None:
    with pytest.raises(ValueError, match=r"images must be plans for the units \(6, 6\)"):
        pooled_plan(identity_plan(8, (6, 6)), [identity_plan(8, (6,))])
    with pytest.raises(ValueError, match="images must be plans for the same layers"):
        pooled_plan(identity_plan(8, (6,)), [identity_plan(9, (6,))])


def test_name_of_the_closed_list_of_stages_warns() -> None:
    module: Any = import_module("vitcop_core.plan")
    with pytest.warns(DeprecationWarning, match="DecoderStage is a str now"):
        assert module.DecoderStage is str
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = module.Nothing
