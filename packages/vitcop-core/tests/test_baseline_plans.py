"""Plans of the methods that ViTCoP is compared with: published counts, and equal budgets."""

import re
from fractions import Fraction
from typing import Any

import pytest

from vitcop_core import (
    DecoderCut,
    DivPrune,
    FastV,
    LanguageModelShape,
    Method,
    Plan,
    PyramidDrop,
    SparseVLM,
    VisionZip,
    VisPruner,
    ViTCoP,
)
from vitcop_core.cost import layer_kv_bytes, layer_macs
from vitcop_core.presets import FASTV, PYRAMIDDROP, SPARSEVLM, VISIONZIP, equal_budgets

METHODS: tuple[Any, ...] = (FastV, PyramidDrop, SparseVLM, VisionZip, DivPrune, VisPruner)
SHAPE = LanguageModelShape(32, 4096, 11008, 32, 32, 128)


def left(plan: Plan) -> list[tuple[int, int]]:
    return [(cut.layer, cut.tokens) for cut in plan.decoder]


@pytest.mark.parametrize(("budget", "keep"), [(192, 166), (128, 98), (64, 30)])
def test_fastv_presets(budget: int, keep: int) -> None:
    assert left(FASTV[budget].plan(32, 576)) == [(2, keep)]


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (270, [(8, 288), (16, 144), (24, 72)]),
        (192, [(2, 334), (8, 194), (16, 112), (24, 65)]),
        (128, [(2, 251), (8, 109), (16, 48), (24, 21)]),
        (64, [(2, 112), (8, 22), (16, 4), (24, 1)]),
    ],
)
def test_pyramiddrop_presets(budget: int, counts: list[tuple[int, int]]) -> None:
    plan = PYRAMIDDROP[budget].plan(32, 576)
    assert left(plan) == counts
    assert plan.average_tokens <= budget
    assert all(cut.pack_positions for cut in plan.decoder)


def test_pyramiddrop_standard_schedule_averages_270() -> None:
    assert PYRAMIDDROP[270].plan(32, 576).average_tokens == 270


@pytest.mark.parametrize(("budget", "ratio"), [(192, 0.581), (128, 0.437), (64, 0.196)])
def test_pyramiddrop_solver_finds_the_published_ratio(budget: int, ratio: float) -> None:
    solved, published = PyramidDrop(retained_tokens=budget).plan(32, 576), PyramidDrop(ratio=ratio).plan(32, 576)
    for one, other in zip(left(solved), left(published), strict=True):
        assert one[0] == other[0]
        assert abs(one[1] - other[1]) <= 1


@pytest.mark.parametrize(
    ("budget", "kept", "tokens", "average"),
    [
        (192, [300, 200, 110], [309, 204, 113], Fraction(413, 2)),
        (128, [303, 110, 36], [312, 117, 39], Fraction(4653, 32)),
        (96, [238, 48, 26], [249, 55, 27], Fraction(3651, 32)),
        (64, [66, 30, 17], [82, 32, 18], Fraction(2632, 32)),
    ],
)
def test_sparsevlm_presets(budget: int, kept: list[int], tokens: list[int], average: Fraction) -> None:
    plan = SPARSEVLM[budget].plan(32, 576)
    assert [cut.layer for cut in plan.decoder] == [3, 7, 16]
    assert [cut.keep for cut in plan.decoder] == kept
    assert [cut.tokens for cut in plan.decoder] == tokens
    assert plan.average_tokens == average


@pytest.mark.parametrize(("budget", "dominant", "contextual"), [(192, 162, 30), (128, 108, 20), (64, 54, 10)])
def test_visionzip_presets_and_solver(budget: int, dominant: int, contextual: int) -> None:
    for method in (VISIONZIP[budget], VisionZip(retained_tokens=budget)):
        plan = method.plan(32, 576)
        assert plan.vision is not None
        assert plan.vision.keep == (dominant + contextual,)
        assert plan.vision.clusters == (contextual,)
        assert plan.average_tokens == budget
        assert not plan.decoder


def test_visionzip_published_counts_are_those_of_each_tile() -> None:
    plan = VISIONZIP[64].plan(32, [576, 576, 24])
    assert plan.vision is not None
    assert plan.vision.keep == (64, 64, 24)
    assert plan.vision.clusters == (10, 10, 4)


@pytest.mark.parametrize(("ratio", "diverse"), [(0.5, (28, 28, 2)), (0.1, (51, 51, 3)), (1, (0, 0, 0))])
def test_vispruner_splits_the_tokens_of_each_unit(ratio: float, diverse: tuple[int, ...]) -> None:
    plan = VisPruner(retention_ratio=0.098, important_ratio=ratio).plan(32, [576, 576, 32])
    assert plan.vision is not None
    assert plan.vision.keep == (56, 56, 3)
    assert plan.vision.clusters == diverse


def test_divprune_keeps_of_each_unit_its_share() -> None:
    plan = DivPrune(retention_ratio=0.098).plan(32, [576, 576, 32])
    assert plan.vision is not None
    assert (plan.vision.keep, plan.vision.clusters, plan.decoder) == ((56, 56, 3), (0, 0, 0), ())


@pytest.mark.parametrize("num_layers", [32, 40])
@pytest.mark.parametrize("method", METHODS)
def test_budget_is_never_exceeded_and_nearly_met(method: Any, num_layers: int) -> None:
    for budget in (575.5, 400, 270, 192.5, 192, 128, 100, 96, 64):
        plan = method(retained_tokens=budget).plan(num_layers, 576)
        assert budget - 1.5 < plan.average_tokens <= budget, budget


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("units", "images"), [([576] * 3, 3), ([144] * 8, 8), ([576, 576, 144, 400, 24], 1)])
def test_budget_is_meant_for_each_image(method: Any, units: list[int], images: int) -> None:
    budget = Fraction(sum(units), 4 * images)
    for settings in ({"retained_tokens": float(budget)}, {"retention_ratio": Fraction(1, 4)}):
        plan = method(**settings).plan(32, units, images=images)
        assert plan.units == tuple(units)
        assert 0.98 * budget * images < plan.average_tokens <= budget * images


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{"retained_tokens": 576}, {"retention_ratio": 1}], ids=["tokens", "ratio"])
def test_budget_for_everything_is_the_identity(method: Any, settings: dict[str, Any]) -> None:
    assert method(**settings).plan(32, 576).is_identity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["retained_tokens", "retention_ratio"])
def test_unreachable_budget_names_the_nearest_that_is_not(method: Any, name: str) -> None:
    asked = 0.4 if name == "retained_tokens" else 0.0004
    with pytest.raises(ValueError, match=f"{name} must be at least .* for {method.__name__}.*, got {asked}") as caught:
        method(**{name: asked}).plan(32, 576)
    named = re.search(r"at least ([\d.]+)", str(caught.value))
    assert named is not None
    nearest = float(named.group(1))
    plan = method(**{name: nearest}).plan(32, 576)
    assert plan.average_tokens <= nearest * (1 if name == "retained_tokens" else 576)


@pytest.mark.parametrize("method", METHODS)
def test_budget_of_more_than_all_tokens_is_an_error(method: Any) -> None:
    with pytest.raises(ValueError, match="retained_tokens must be at most the 576 visual tokens of an image, got 577"):
        method(retained_tokens=577).plan(32, 576)


@pytest.mark.parametrize(
    ("method", "num_layers", "layers"),
    [
        (FastV(retention_ratio=0.5), 40, [3]),
        (FastV(retention_ratio=0.5), 8, [1]),
        (PyramidDrop(retention_ratio=0.5), 40, [3, 10, 20, 30]),
        (PyramidDrop(ratios=(0.5, 0.25, 0.125)), 24, [6, 12, 18]),
        (SparseVLM(retention_ratio=0.5), 40, [4, 9, 20]),
        (SparseVLM(retention_ratio=0.5), 8, [1, 2, 4]),
        (SparseVLM(retention_ratio=0.5), 5, [1, 2, 3]),
    ],
)
def test_layers_follow_the_depth(method: Method, num_layers: int, layers: list[int]) -> None:
    assert [cut.layer for cut in method.plan(num_layers, 576).decoder] == layers


def test_given_layers_are_taken_as_they_are() -> None:
    assert left(FastV(keep=9, layer=5).plan(40, 576)) == [(5, 9)]
    assert left(PyramidDrop(ratio=0.5, layers=(1, 3)).plan(40, 576)) == [(1, 288), (3, 144)]
    assert [cut.layer for cut in SparseVLM(counts=(30, 20, 10), layers=(1, 2, 3)).plan(40, 576).decoder] == [1, 2, 3]


@pytest.mark.parametrize(
    "method",
    [FastV(keep=9, layer=8), PyramidDrop(ratio=0.5, layers=(1, 8)), SparseVLM(counts=(9, 8, 7), layers=(1, 2, 9))],
)
def test_layers_beyond_the_model_are_an_error(method: Method) -> None:
    with pytest.raises(ValueError, match="layers must be below the model's 8 layers"):
        method.plan(8, 576)


def test_counts_beyond_what_there_is_cut_nothing_more() -> None:
    assert FastV(keep=600).plan(32, 576).is_identity
    assert left(PyramidDrop(ratio=0.1).plan(32, 20)) == [(2, 2), (8, 1)]
    # The first stage drops one token and would recycle it, the second drops six and recycles one.
    assert left(SparseVLM(counts=(50, 3, 3)).plan(32, 10)) == [(7, 4)]


@pytest.mark.parametrize(
    ("method", "settings", "error", "message"),
    [
        (FastV, {}, ValueError, "retained_tokens, retention_ratio or keep must be given, and one alone, got none"),
        (FastV, {"keep": 3, "retained_tokens": 3}, ValueError, "got retained_tokens and keep"),
        (FastV, {"keep": 0}, ValueError, "keep must be"),
        (FastV, {"keep": 3, "layer": 0}, ValueError, "layer must be"),
        (FastV, {"retained_tokens": "3"}, TypeError, "retained_tokens must be"),
        (FastV, {"retention_ratio": 1.5}, ValueError, "retention_ratio must be"),
        (PyramidDrop, {"ratio": 0}, ValueError, "ratio must be"),
        (PyramidDrop, {"ratios": [0.5]}, TypeError, "ratios must be a tuple"),
        (PyramidDrop, {"ratios": (0.5, 0.6, 0.1)}, ValueError, "none is above the one before"),
        (PyramidDrop, {"ratios": (0.5, 0.1)}, ValueError, "three or four"),
        (PyramidDrop, {"ratios": (0.5, 0.1), "layers": (3,)}, ValueError, "as many as the layers"),
        (PyramidDrop, {"ratio": 0.5, "layers": (3, 3)}, ValueError, "ascending"),
        (PyramidDrop, {"ratio": 0.5, "layers": [3]}, TypeError, "layers must be a tuple"),
        (SparseVLM, {"counts": (3, 2)}, TypeError, "tuple .first, second, third."),
        (SparseVLM, {"counts": (3, 2, 0)}, ValueError, "counts must be"),
        (SparseVLM, {"counts": (3, 2, 1), "layers": (1, 2)}, ValueError, "three layers"),
        (VisionZip, {"counts": 3}, TypeError, "counts must be a tuple"),
        (VisionZip, {"counts": (3, 0)}, ValueError, "counts must be"),
        (DivPrune, {}, ValueError, "retained_tokens or retention_ratio must be given, and one alone, got none"),
        (VisPruner, {"retained_tokens": 9, "important_ratio": 0}, ValueError, "important_ratio must be"),
        (VisPruner, {"retained_tokens": 9, "important_ratio": "half"}, TypeError, "important_ratio must be"),
        (VisPruner, {"retained_tokens": 9, "vision_saliency": "most"}, ValueError, "vision_saliency must be"),
    ],
)
def test_settings_are_checked(method: Any, settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        method(**settings)


@pytest.mark.parametrize("method", equal_budgets(128).values(), ids=equal_budgets(128))
def test_costs_count_every_token_of_a_plan(method: Method) -> None:
    plan = method.plan(32, 576)
    lengths = [tokens + 60 for tokens in plan.tokens_per_layer]
    assert plan.macs(SHAPE, 60) == sum(layer_macs(SHAPE, length) for length in lengths)
    assert plan.kv_bytes(SHAPE, 60) == sum(layer_kv_bytes(SHAPE, length, 2) for length in lengths)
    assert 126 < plan.average_tokens <= 128


def test_equal_budgets_are_the_seven_methods() -> None:
    assert list(equal_budgets(64)) == [
        "FastV",
        "PyramidDrop",
        "SparseVLM",
        "VisionZip",
        "DivPrune",
        "VisPruner",
        "ViTCoP",
    ]


@pytest.mark.parametrize("method", [FastV, PyramidDrop, SparseVLM])
def test_attention_of_the_prompt_depends_on_the_question(method: Any) -> None:
    assert method(retained_tokens=64).cuts_depend_on_question is True


@pytest.mark.parametrize("method", [VisionZip, DivPrune, VisPruner, ViTCoP])
def test_vision_cuts_do_not_depend_on_the_question(method: Any) -> None:
    assert method(retained_tokens=64).cuts_depend_on_question is False


def test_cut_cannot_pack_and_reindex() -> None:
    with pytest.raises(ValueError, match="pack_positions must be False with reindex_positions"):
        DecoderCut(2, 5, "top_tokens", reindex_positions=True, pack_positions=True)


def test_cut_packs_where_it_recycles() -> None:
    with pytest.raises(ValueError, match="pack_positions must be True with recycled"):
        DecoderCut(2, 5, "recycle", recycled=1)


def test_cut_counts_recycled_tokens() -> None:
    plan = Plan(4, (9,), None, (DecoderCut(1, 5, "recycle", recycled=2, pack_positions=True),))
    assert plan.tokens_per_layer == (9, 7, 7, 7)
    with pytest.raises(ValueError, match="less than the 9 tokens before the cut"):
        Plan(4, (9,), None, (DecoderCut(1, 5, "recycle", recycled=4, pack_positions=True),))
