"""ViTCoP's settings and plans."""

import math
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vitcop_core import LanguageModelShape, Plan, VisionCut, ViTCoP, feasible_range
from vitcop_core.cost import layer_macs
from vitcop_core.presets import BUDGETS, table_4, table_7


def counts(plan: Plan) -> tuple[int, ...]:
    return (plan.entry_tokens, *(cut.keep for cut in plan.decoder))


@pytest.mark.parametrize(
    ("retained", "expected", "clusters", "mean"),
    [
        (192, (288, 253, 50), 52, 191.75),
        (128, (230, 165, 33), 35, 127.8125),
        (64, (172, 77, 15), 21, 63.5625),
        (32, (144, 33, 6), 16, 31.5),
    ],
)
def test_plan_keeps_the_papers_counts(retained: int, expected: tuple[int, ...], clusters: int, mean: float) -> None:
    plan = ViTCoP(retained_tokens=retained).plan(32, 576)
    assert counts(plan) == expected
    assert [(cut.layer, cut.stage) for cut in plan.decoder] == [(2, "co_prune"), (22, "top_tokens")]
    assert plan.num_clusters == clusters
    assert float(plan.average_tokens) == mean


@pytest.mark.parametrize(
    ("retained", "expected", "clusters"),
    [(192, (288, 253, 51), 51), (128, (230, 165, 33), 34), (64, (172, 77, 15), 20)],
)
def test_official_plan_keeps_the_released_codes_counts(retained: int, expected: tuple[int, ...], clusters: int) -> None:
    plan = ViTCoP(retained_tokens=retained, compat="official").plan(32, 576)
    assert counts(plan) == expected
    # One more label than centers, for the tokens that the released code leaves without one.
    assert plan.num_clusters == clusters + 1
    assert [cut.reindex_positions for cut in plan.decoder] == [False, True]


def test_official_schedule_is_made_for_32_layers() -> None:
    plan = ViTCoP(retention_ratio=1 / 9, compat="official").plan(40, 576)
    assert [cut.layer for cut in plan.decoder] == [2, 22]
    assert 0.093 < plan.average_tokens / 576 < 0.0943
    shallow = ViTCoP(retention_ratio=1 / 9, compat="official").plan(12, 576)
    assert [cut.layer for cut in shallow.decoder] == [1, 8]


@pytest.mark.parametrize("ratio", [1 / 9, Fraction(1, 9), 0.1111111111111])
def test_ratio_and_tokens_are_the_same_budget(ratio: float | Fraction) -> None:
    assert ViTCoP(retention_ratio=ratio).plan(32, 576) == ViTCoP(retained_tokens=64).plan(32, 576)


def test_float_ratios_lose_no_token_to_rounding() -> None:
    assert ViTCoP(retention_ratio=1 / 3).plan(32, 576).entry_tokens == 288
    plan = ViTCoP(ratios=(0.07, 0.05, 0.01)).plan(32, 100)
    assert counts(plan) == (7, 5, 1)


@pytest.mark.parametrize(
    ("retained", "unit", "expected", "cap"),
    [(320, 172, (386, 77), 38), (160, 144, (167, 33), 16)],
)
def test_budget_of_a_tiled_image_is_spread_over_its_tiles(
    retained: int, unit: int, expected: tuple[int, int], cap: int
) -> None:
    plan = ViTCoP(retained_tokens=retained).plan(32, [576] * 5, images=1)
    assert plan.vision is not None
    assert plan.vision.keep == (unit,) * 5
    assert counts(plan)[1:] == expected
    assert max(plan.vision.clusters) <= cap


def test_video_frames_are_units_of_one_sample() -> None:
    plan = ViTCoP(retention_ratio=1 / 9).plan(32, [144] * 8)
    assert plan.vision == VisionCut((43,) * 8, (6,) * 8)
    assert counts(plan)[1:] == (154, 30)


def test_budget_in_tokens_is_for_each_image() -> None:
    two = ViTCoP(retained_tokens=64).plan(32, [576, 576], images=2)
    assert two.vision is not None
    assert two.vision.keep == (172, 172)
    assert counts(two)[1:] == (154, 30)
    one = ViTCoP(retained_tokens=64).plan(32, [576, 576], images=1)
    assert one.average_tokens <= 64


@pytest.mark.parametrize(
    "settings",
    [{"retained_tokens": 576}, {"retention_ratio": 1}, {"retention_ratio": 1.0}, {"ratios": (1, 1.0, 1)}],
    ids=str,
)
@pytest.mark.parametrize("extra", [{}, {"stage_one": True, "clustering": False}, {"compat": "official"}], ids=str)
def test_keeping_everything_is_the_identity(settings: dict[str, Any], extra: dict[str, Any]) -> None:
    assert ViTCoP(**settings, **extra).plan(2, 576).is_identity


def test_explicit_ratios_may_skip_a_cut() -> None:
    no_vision = ViTCoP(ratios=(1, 0.5, 0.1)).plan(32, 100)
    assert no_vision.vision == VisionCut((100,), (25,))
    no_co_prune = ViTCoP(ratios=(0.5, 0.5, 0.1)).plan(32, 100)
    assert no_co_prune.vision == VisionCut((50,), (0,))
    assert [(cut.layer, cut.keep) for cut in no_co_prune.decoder] == [(22, 10)]
    only_deep = ViTCoP(ratios=(1, 1, 0.1)).plan(32, 100)
    assert only_deep.vision is None
    assert [cut.layer for cut in only_deep.decoder] == [22]


def test_floors_of_small_units_never_ask_for_more_than_there_is() -> None:
    plan = ViTCoP(ratios=(0.5, 0.5, 0.45)).plan(32, [3] * 5)
    assert plan.entry_tokens == 5
    assert plan.decoder == ()


def test_pi1_moves_the_other_ratios() -> None:
    plan = ViTCoP(retained_tokens=64, pi1=0.5).plan(32, 576)
    assert plan.entry_tokens == 288
    assert 63 < plan.average_tokens <= 64


def test_table_4_ablations_keep_the_budget() -> None:
    plans = {name: method.plan(32, 576) for name, method in table_4(64).items()}
    assert counts(plans["ViTCoP"]) == counts(plans["w/o K-norm Guidance"]) == (172, 77, 15)
    without_clusters = plans["w/o Attention Guidance"]
    assert without_clusters.num_clusters == 0
    assert without_clusters.decoder[0].stage == "top_tokens"
    without_first = plans["w/o Stage I Pruning"]
    assert counts(without_first) == (576, 40, 8)
    assert without_first.vision == VisionCut((576,), (20,))
    without_third = plans["w/o Stage III Pruning"]
    assert counts(without_third) == (172, 56)
    assert all(63 < plan.average_tokens <= 64 for plan in plans.values())


def test_table_7_cuts_where_it_says() -> None:
    for layers, method in table_7(64).items():
        plan = method.plan(32, 576)
        assert tuple(cut.layer for cut in plan.decoder) == layers
        assert 62 < plan.average_tokens <= 64
    assert list(table_7(16, num_layers=8)) == [(2, 6), (1, 6), (3, 6), (2, 4), (2, 7)]
    assert list(table_7(64, num_layers=40)) == [(2, 28), (1, 28), (3, 28), (2, 21), (2, 34)]
    assert BUDGETS == (192, 128, 64, 32)


def test_cluster_count_is_rounded_by_the_switch_and_capped() -> None:
    settings = ViTCoP(retained_tokens=64, center_ratio=0.1)
    assert settings.plan(32, 576).num_clusters == 18
    assert replace(settings, centers_round="floor").plan(32, 576).num_clusters == 17
    assert replace(settings, center_ratio=1).plan(32, 576).num_clusters == 77 // 2


def test_switches_follow_compat_until_set() -> None:
    official = ViTCoP(retained_tokens=64, compat="official")
    assert (official.switch("merge"), official.switch("quota")) == ("anchor_plus_mean", "rounded")
    assert replace(official, merge="mean").switch("merge") == "mean"
    assert replace(official, compat="paper").switch("counts") == "floor"
    assert official.switch("vic_features") == "vit_keys"


@given(
    num_layers=st.integers(3, 80),
    units=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    share=st.fractions(0, 1, max_denominator=1000),
    chained=st.booleans(),
)
def test_mean_stays_in_the_budget_and_near_it(
    num_layers: int, units: list[int], share: Fraction, chained: bool
) -> None:
    method = ViTCoP(retention_ratio=1, counts="chained" if chained else "floor")
    first, deep = (2, (22 * num_layers + 16) // 32) if num_layers > 3 else (1, 2)
    low, high = feasible_range(num_layers, first, deep)
    retention = low + share * (high - low)
    assume(retention > low)
    try:
        plan = replace(method, retention_ratio=retention).plan(num_layers, units)
    except ValueError as error:
        if not str(error).startswith("retention_ratio must be "):
            raise
        return
    target = retention * sum(units)
    assert plan.average_tokens > target - 1 - len(units)
    if not chained:
        assert plan.average_tokens <= target
    assert list(counts(plan)) == sorted(counts(plan), reverse=True)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({}, ValueError, "must be given, and one alone, got none"),
        ({"retained_tokens": 64, "retention_ratio": 0.1}, ValueError, "got retained_tokens and retention_ratio"),
        ({"retained_tokens": True}, TypeError, "retained_tokens must be a positive number, got True"),
        ({"retained_tokens": "64"}, TypeError, "retained_tokens"),
        ({"retained_tokens": 0}, ValueError, "retained_tokens must be a positive number, got 0"),
        ({"retained_tokens": -3}, ValueError, "retained_tokens"),
        ({"retained_tokens": math.nan}, ValueError, "retained_tokens .* got nan"),
        ({"retained_tokens": math.inf}, ValueError, "retained_tokens .* got inf"),
        ({"retention_ratio": 1.5}, ValueError, r"retention_ratio must be a number in \(0, 1\], got 1.5"),
        ({"retention_ratio": math.nan}, ValueError, "retention_ratio"),
        ({"retention_ratio": 0.0}, ValueError, "retention_ratio"),
        ({"ratios": (0.5, 0.2)}, TypeError, "ratios must be a tuple"),
        ({"ratios": (0.5, 0.6, 0.1)}, ValueError, "ratios must be three ratios, none above"),
        ({"ratios": (0.5, 0.2, 0.0)}, ValueError, r"ratios must be a number in \(0, 1\]"),
        ({"ratios": (0.5, 0.2, 0.1), "stage_one": False}, ValueError, "ratios must be None when a stage is off"),
        ({"ratios": (0.5, 0.2, 0.1), "pi1": 0.5}, ValueError, "pi1 must be None with ratios"),
        ({"retained_tokens": 64, "pi1": 2}, ValueError, "pi1"),
        ({"retained_tokens": 64, "layers": (22, 2)}, ValueError, "layers must be two layers in ascending order"),
        ({"retained_tokens": 64, "layers": (2, 2)}, ValueError, "layers"),
        ({"retained_tokens": 64, "layers": (0, 2)}, ValueError, "layers must be an integer from 1 to 10000, got 0"),
        ({"retained_tokens": 64, "layers": (2.0, 3)}, TypeError, "layers"),
        ({"retained_tokens": 64, "layers": 2}, TypeError, "layers must be a tuple"),
        ({"retained_tokens": 64, "cutoff_distance": 0}, ValueError, "cutoff_distance"),
        ({"retained_tokens": 64, "spatial_threshold": math.inf}, ValueError, "spatial_threshold"),
        ({"retained_tokens": 64, "center_ratio": 1.2}, ValueError, "center_ratio"),
        ({"retained_tokens": 64, "compat": "upstream"}, ValueError, "compat must be one of 'paper', 'official'"),
        ({"retained_tokens": 64, "quota": "floor"}, ValueError, "quota must be one of 'top_up', 'rounded'"),
        ({"retained_tokens": 64, "vic_features": "keys"}, ValueError, "vic_features"),
        ({"retained_tokens": 64, "saliency": "random"}, ValueError, "saliency"),
        ({"retained_tokens": 64, "stage_one": 1}, TypeError, "stage_one must be True or False"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ViTCoP(**settings)


@pytest.mark.parametrize(
    ("settings", "call", "error", "match"),
    [
        ({"retained_tokens": 577}, (32, 576), ValueError, "retained_tokens must be at most the 576 visual tokens"),
        ({"retained_tokens": 500}, (32, 576), ValueError, "from 12 to 432 of the 576 visual tokens of an image, or"),
        ({"retained_tokens": 8}, (32, 576), ValueError, r"from 12 to 432 of the 576 .* got 8\. Other layers"),
        ({"retained_tokens": 2}, (32, 10), ValueError, "from 4 to 7 of the 10 visual tokens of an image"),
        ({"ratios": (0.3, 0.2, 0.001)}, (32, 576), ValueError, "ratios must be such that a token is left in every"),
        ({"retained_tokens": 64, "layers": (2, 32)}, (32, 576), ValueError, "layers must be below the model's 32"),
        ({"retained_tokens": 64}, (2, 576), ValueError, "num_layers must be at least 3"),
        ({"retained_tokens": 64}, (True, 576), TypeError, "num_layers"),
        ({"retained_tokens": 64}, (32, 0), ValueError, "visual_tokens must be an integer >= 1, got 0"),
        ({"retained_tokens": 64}, (32, []), ValueError, "visual_tokens must be a count, or one for each unit"),
        ({"retained_tokens": 64}, (32, 576.0), TypeError, "visual_tokens must be an integer"),
        ({"retained_tokens": 64}, (32, [576, True]), TypeError, "visual_tokens"),
        ({"retention_ratio": 0.05, "stage_one": False}, (32, 576), ValueError, "when Stage I keeps 1"),
    ],
    ids=str,
)
def test_bad_plans_are_named(
    settings: dict[str, Any], call: tuple[Any, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ViTCoP(**settings).plan(*call)


def test_more_images_than_units_are_rejected() -> None:
    with pytest.raises(ValueError, match="images must be an integer from 1 to 1, got 2"):
        ViTCoP(retained_tokens=64).plan(32, 576, images=2)


def test_settings_are_frozen_and_compare_by_value() -> None:
    settings = ViTCoP(retained_tokens=64)
    assert settings == ViTCoP(retained_tokens=64)
    with pytest.raises(FrozenInstanceError):
        settings.retained_tokens = 32  # type: ignore[misc]


@pytest.mark.parametrize("layers", [28, 32, 40])
@pytest.mark.parametrize("pi1", [None, 0.3])
@pytest.mark.parametrize("tokens", [32, 100, 192, 350])
def test_several_images_stay_within_the_budget(layers: int, pi1: float | None, tokens: int) -> None:
    """Each enters as if it were alone, and Stage II leaves what all of them together would."""
    method = ViTCoP(retained_tokens=tokens, pi1=pi1)
    for sizes in ((576, 270), (576, 576, 300), (1024, 300), (190, 493, 864), (576, 400)):
        try:
            images, whole = [method.plan(layers, size) for size in sizes], method.plan(layers, sizes, images=len(sizes))
        except ValueError:  # an image that the budget does not fit
            continue
        pooled = method.pool(whole, images)
        assert pooled.entry_tokens == sum(image.entry_tokens for image in images)
        assert pooled.average_tokens <= tokens * len(sizes)
        assert pooled.average_tokens > Fraction(9, 10) * whole.average_tokens
        assert pooled.decoder[-1].tokens == whole.decoder[-1].tokens


def test_past_tokens_add_to_the_attention_alone() -> None:
    shape = LanguageModelShape(2, 8, 16, 4, 2, 2)
    assert layer_macs(shape, 5, 7) - layer_macs(shape, 5) == 2 * 5 * 7 * 8
    with pytest.raises(ValueError, match="past must be"):
        layer_macs(shape, 5, -1)


@pytest.mark.parametrize("settings", [{"retention_ratio": 1}, {"ratios": (1, 1, 1)}, {"retained_tokens": 9}], ids=repr)
def test_several_images_that_keep_everything_need_no_layers_to_cut(settings: dict[str, Any]) -> None:
    method = ViTCoP(**settings)
    whole = method.plan(2, (9, 9), images=2)
    assert method.pool(whole, [method.plan(2, 9)] * 2) == whole
    assert whole.is_identity
