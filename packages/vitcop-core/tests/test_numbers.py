"""Odd numbers: every public function takes them as they are meant, or says by name what it wants instead."""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vitcop_core
from vitcop_core import (
    DecoderCut,
    DivPrune,
    EarlyViTCoP,
    FastV,
    LanguageModelShape,
    Plan,
    PyramidDrop,
    SparseVLM,
    VisionCut,
    VisionView,
    VisionZip,
    VisPruner,
    ViTCoP,
    cost,
    identity_plan,
    ops,
    pooled_plan,
    presets,
    schedule,
)
from vitcop_core.checks import check_choice, check_finite, check_flag, check_int, check_positive
from vitcop_core.diagnostics import cutoff_scale
from vitcop_core.methods import BudgetedMethod
from vitcop_core.shown import shown, told

HUGE = 10**400
ODD: dict[str, Any] = {
    "huge": HUGE,
    "minus huge": -HUGE,
    "too long to write": 10**5000,
    "past 32 bits": 2**31,
    "past 64 bits": 2**63,
    "zero": 0,
    "minus one": -1,
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "subnormal": 1e-320,
    "small": 1e-7,
    "largest": 1.7e308,
    "half": 0.5,
    "tiny fraction": Fraction(1, HUGE),
    "huge fraction": Fraction(HUGE, 3),
    "long fraction": Fraction(10**5000 + 1, 10**5000),
    "True": True,
    "None": None,
    "text": "1",
    "bytes": b"1",
    "complex": 1j,
    "list": [1],
    "nested": ((1, 2), 3),
    "huge inside": (HUGE, 10**5000),
    "one number": torch.tensor([1]),
    "two numbers": torch.tensor([1.0, 2.0]),
    "scalar": torch.tensor(1),
    "int64": np.int64(1),
    "uint8": np.uint8(2),
    "float32": np.float32(0.1),
    "float64": np.float64(0.1),
    "float16 nan": np.float16("nan"),
    "bool_": np.bool_(True),
    "array of two": np.array([1, 2]),
}

FEATURES, PLACES = torch.rand(2, 4, 3), torch.rand(2, 4, 2)
LABELS, WEIGHTS, KEYS = torch.zeros(2, 4, dtype=torch.int64), torch.rand(2, 4), torch.rand(2, 1, 4, 3)
SHAPE = LanguageModelShape(8, 64, 128, 4, 2, 16)
PLAN = Plan(8, (16, 9), VisionCut((8, 4), (2, 1)), (DecoderCut(2, 6, "co_prune"),))
VIEW = {"query_cls": KEYS[:, :, 0], "keys": KEYS, "scale": 1.0, "positions": PLACES, "hidden": FEATURES}
PLANNED: dict[str, Any] = {"num_layers": 32, "visual_tokens": [576, 576], "images": 2}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "VisionCut": (VisionCut, {"keep": (8, 4), "clusters": (2, 1)}),
    "DecoderCut": (DecoderCut, {field.name: getattr(PLAN.decoder[0], field.name) for field in fields(DecoderCut)}),
    "Plan": (Plan, {field.name: getattr(PLAN, field.name) for field in fields(Plan)}),
    "Plan.macs": (PLAN.macs, {"shape": SHAPE, "text_tokens": 3}),
    "Plan.kv_bytes": (PLAN.kv_bytes, {"shape": SHAPE, "text_tokens": 3, "bytes_per_element": 2}),
    "Plan.kv_bytes_per_layer": (
        PLAN.kv_bytes_per_layer,
        {"shape": SHAPE, "text_tokens": 3, "bytes_per_element": 2},
    ),
    "identity_plan": (identity_plan, {"num_layers": 8, "units": (5, 6)}),
    "pooled_plan": (pooled_plan, {"whole": PLAN, "images": [PLAN]}),
    "LanguageModelShape": (LanguageModelShape, {f.name: getattr(SHAPE, f.name) for f in fields(LanguageModelShape)}),
    "layer_macs": (cost.layer_macs, {"shape": SHAPE, "tokens": 5, "past": 2}),
    "layer_kv_bytes": (cost.layer_kv_bytes, {"shape": SHAPE, "tokens": 5, "bytes_per_element": 2}),
    "default_layers": (schedule.default_layers, {"num_layers": 8}),
    "default_center_ratio": (schedule.default_center_ratio, {"vision_ratio": Fraction(1, 3)}),
    "feasible_range": (
        schedule.feasible_range,
        {"num_layers": 8, "first_layer": 2, "deep_layer": 5, "vision_ratio": None, "decay": Fraction(5)},
    ),
    "solve_ratios": (
        schedule.solve_ratios,
        {
            "retention": Fraction(1, 2),
            "num_layers": 8,
            "first_layer": 2,
            "deep_layer": 5,
            "vision_ratio": None,
            "decay": Fraction(5),
        },
    ),
    "table_4": (presets.table_4, {"retained_tokens": 64}),
    "table_7": (presets.table_7, {"retained_tokens": 64, "num_layers": 32}),
    "equal_budgets": (presets.equal_budgets, {"retained_tokens": 64}),
    "FastV": (FastV, {"retained_tokens": 64, "retention_ratio": None, "keep": None, "layer": 2}),
    "FastV with keep": (FastV, {"keep": 30}),
    "PyramidDrop": (PyramidDrop, {"retained_tokens": 64, "layers": (2, 4), "ratio": None, "ratios": None}),
    "PyramidDrop with ratio": (PyramidDrop, {"ratio": 0.5}),
    "PyramidDrop with ratios": (PyramidDrop, {"ratios": (0.5, 0.25, 0.1)}),
    "SparseVLM": (SparseVLM, {"retention_ratio": 0.5, "layers": (2, 3, 4)}),
    "SparseVLM with counts": (SparseVLM, {"counts": (66, 30, 17)}),
    "EarlyViTCoP": (EarlyViTCoP, {"retention_ratio": 0.5}),
    "EarlyViTCoP with settings": (EarlyViTCoP, {"retained_tokens": 9, "pi1": 0.5, "center_ratio": 0.1}),
    "VisionZip": (VisionZip, {"retention_ratio": 0.5}),
    "VisionZip with counts": (VisionZip, {"counts": (54, 10)}),
    "DivPrune": (DivPrune, {"retained_tokens": 64, "retention_ratio": None}),
    "VisPruner": (VisPruner, {"retention_ratio": 0.5, "important_ratio": 0.25}),
    "ViTCoP": (ViTCoP, {field.name: getattr(ViTCoP(retained_tokens=64), field.name) for field in fields(ViTCoP)}),
    "ViTCoP with ratios": (ViTCoP, {"ratios": (0.5, 0.2, 0.1)}),
    "ViTCoP with layers": (ViTCoP, {"retention_ratio": 0.1, "layers": (2, 4), "pi1": 0.7}),
    **{
        f"{type(method).__name__}.plan {number}": (method.plan, PLANNED)
        for number, method in enumerate(
            [
                *presets.equal_budgets(400).values(),
                FastV(keep=30),
                PyramidDrop(ratio=0.5),
                SparseVLM(counts=(66, 30, 17)),
            ]
        )
    },
    "top_tokens": (ops.top_tokens, {"saliency": WEIGHTS, "k": 2, "smallest": False, "lengths": None, "counts": None}),
    "vic": (
        ops.vic,
        {
            "features": FEATURES,
            "positions": PLACES,
            "num_centers": 2,
            "cutoff_distance": 8.0,
            "spatial_threshold": 0.6,
            "lengths": None,
            "counts": None,
        },
    ),
    "vic_in_time": (
        ops.vic_in_time,
        {
            "features": FEATURES,
            "positions": FEATURES,
            "num_centers": 2,
            "cutoff_distance": 8.0,
            "spatial_threshold": 0.6,
        },
    ),
    "co_prune": (
        ops.co_prune,
        {"hidden": FEATURES, "labels": LABELS, "key_norm": WEIGHTS, "budget": 2, "num_clusters": 1},
    ),
    "cls_saliency": (ops.cls_saliency, {"query_cls": KEYS[:, :, 0], "keys": KEYS, "scale": 1.0}),
    "key_norm": (ops.key_norm, {"keys": KEYS}),
    "auto_cutoff": (ops.auto_cutoff, {"features": FEATURES}),
    "received_attention": (ops.received_attention, {"queries": KEYS, "keys": KEYS, "scale": 1.0}),
    "gather_tokens": (ops.gather_tokens, {"tensors": [WEIGHTS], "index": LABELS}),
    "product": (ops.product, {"left": KEYS, "right": KEYS.mT}),
    "cutoff_scale": (cutoff_scale, {"features": FEATURES, "cutoff_distance": 8.0}),
    "VisionView": (VisionView, {**VIEW, "pool": 1, "grid": None, "frames": None}),
}
core: Any = vitcop_core
SLOTS = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]

# Holders of tensors, which are made in every step and check shapes where they are used.
UNCHECKED = {"Clusters", "DecoderView", "PromptView", "Ratios", "Selection", "VisionSelection", "Method"}


DOCUMENTED = (" must be ", " must have ")


def error_of(call: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """What a call is refused with, which has to be short and to say what is wanted; None where it is not."""
    try:
        found = call(**arguments)
        if isinstance(found, Plan):
            assert found.average_tokens > 0
        elif isinstance(found, BudgetedMethod | ViTCoP):
            return error_of(found.plan, PLANNED)
    except (TypeError, ValueError) as refused:
        error = str(refused)
    else:
        return None
    assert any(words in error for words in DOCUMENTED), error
    assert len(error) < 700
    return error


def test_every_public_callable_is_tried() -> None:
    tried = {call.__qualname__.partition(".")[0] for call, _ in CALLS.values()}
    public = {name for name in vitcop_core.__all__ if callable(getattr(vitcop_core, name))}
    assert public - UNCHECKED <= tried | {"find_method"}
    assert {name for name in ops.__all__ if callable(getattr(ops, name))} <= tried
    for module in (presets, schedule, cost):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = {name for name, call in functions if call.__module__ == module.__name__ and name[0] != "_"}
        assert own - {"check_shape"} <= tried


@pytest.mark.parametrize(("name", "argument"), SLOTS, ids=lambda value: value)
def test_odd_number_is_taken_or_refused_by_name(name: str, argument: str) -> None:
    call, arguments = CALLS[name]
    assert error_of(call, arguments) is None
    for odd in ODD.values():
        error_of(call, {**arguments, argument: odd})


@given(st.data())
def test_odd_numbers_together_are_taken_or_refused(data: st.DataObject) -> None:
    call, arguments = CALLS[data.draw(st.sampled_from([*CALLS]))]
    odd = data.draw(st.dictionaries(st.sampled_from([*arguments]), st.sampled_from([*ODD]), min_size=1, max_size=4))
    inside = data.draw(st.booleans())
    values = {name: ODD[key] for name, key in odd.items()}
    error_of(call, arguments | {name: (value, value) if inside else value for name, value in values.items()})


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_checks_say_what_they_want(odd: Any) -> None:
    for check in (check_positive, check_finite, check_flag):
        error_of(check, {"name": "n", "value": odd})
    error_of(check_int, {"name": "n", "value": odd, "low": 1})
    error_of(check_choice, {"name": "n", "value": odd, "choices": ("one", "two")})
    assert 0 < len(shown(odd)) < 200


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: core.ViTCoP(retained_tokens=HUGE),
            ValueError,
            "retained_tokens must be a number from 1e-300 to 1e300, got about 10**400",
        ),
        (
            lambda: core.ViTCoP(retention_ratio=Fraction(1, HUGE)),
            ValueError,
            "retention_ratio must be a number from 1e-300 to 1e300, got Fraction(1, about 10**400)",
        ),
        (
            lambda: core.ViTCoP(retained_tokens=64, cutoff_distance=HUGE),
            ValueError,
            "cutoff_distance must be a number from 1e-300",
        ),
        (lambda: core.ViTCoP(retained_tokens=64, spatial_threshold=10**5000), ValueError, "got about 10**5000"),
        (
            lambda: core.ViTCoP(retained_tokens=64, layers=(1, HUGE)),
            ValueError,
            "layers must be an integer from 1 to 10000",
        ),
        (
            lambda: core.ViTCoP(retained_tokens=64).plan(32, HUGE),
            ValueError,
            "visual_tokens must be an integer from 1 to 2147483647, got about 10**400",
        ),
        (lambda: core.FastV(keep=30).plan(HUGE, 576), ValueError, "num_layers must be an integer from 1 to 10000"),
        (lambda: core.Plan(8, 16, None, ()), TypeError, "units must be a tuple of integers, got 16 (int)"),
        (lambda: core.Plan(8, (16,), (8,), ()), TypeError, "vision must be a VisionCut or None, got (8,) (tuple)"),
        (lambda: core.Plan(8, (16,), None, None), TypeError, "decoder must be a tuple of DecoderCut, got None"),
        (lambda: core.Plan(8, (16,), None, (3,)), TypeError, "decoder must be a tuple of DecoderCut, got 3 (int)"),
        (lambda: core.DecoderCut(2, 6, torch.ones(2)), TypeError, "stage must be a text, got a tensor"),
        (lambda: core.DecoderCut(2, 6, ""), ValueError, "stage must be a text that is not empty"),
        (lambda: core.pooled_plan(None, [PLAN]), TypeError, "whole must be a Plan, got None"),
        (lambda: core.pooled_plan(PLAN, [None]), TypeError, "images must be a sequence of Plan, got None"),
        (lambda: core.pooled_plan(PLAN, 3), TypeError, "images must be a sequence, got int"),
        (
            lambda: core.feasible_range(0, 2, 0.1),
            ValueError,
            "num_layers must be an integer from 3 to 10000, got 0",
        ),
        (lambda: core.feasible_range(8, 2, 0.1), TypeError, "deep_layer must be an integer from 3 to 7, got 0.1"),
        (
            lambda: core.solve_ratios(Fraction(HUGE), 32, 2, 22),
            ValueError,
            "retention must be a number from 1e-300 to 1e300",
        ),
        (
            lambda: core.solve_ratios(Fraction(1, 2), 32, 2, 22, decay=Fraction(1, 2)),
            ValueError,
            "decay must be a number >= 1",
        ),
        (
            lambda: core.ops.vic(FEATURES, PLACES, 2, spatial_threshold=HUGE),
            ValueError,
            "spatial_threshold must be a number from 1e-300",
        ),
        (
            lambda: core.ops.cls_saliency(KEYS[:, :, 0], KEYS, "1"),
            TypeError,
            "scale must be a finite number, got '1' (str)",
        ),
        (
            lambda: core.ops.top_tokens(WEIGHTS, torch.tensor([1, 2])),
            TypeError,
            "k must be an integer from 1 to 4, got a tensor of shape [2] (Tensor)",
        ),
        (
            lambda: core.ViTCoP(retained_tokens=64, change_share=torch.ones(2)),
            TypeError,
            "change_share must be a number in (0, 1], got a tensor",
        ),
    ],
)
def test_number_out_of_range_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("value", [1e-7, 3e-7, 4.9e-7, 5.1e-7, 7e-7, 1.5e-6, 1e-12, 1e-300, Fraction(1, 10**9)])
def test_small_number_is_not_rounded_away(value: float | Fraction) -> None:
    found = check_positive("n", value)
    assert abs(found - Fraction(value)) <= Fraction(value) / 10**8
    if isinstance(value, float):
        assert found == Fraction(str(value))


@pytest.mark.parametrize("value", ["1/3", "2/9", "7/100", "111/1000", "145/2", "999999/1000000", "1/64", "64"])
def test_float_is_read_as_the_fraction_that_it_was_written_for(value: str) -> None:
    assert check_positive("n", float(Fraction(value))) == Fraction(value)


def test_thresholds_at_the_ends_of_floats_run() -> None:
    for threshold in (1e-300, 1e300):
        for call in (ops.vic, ops.vic_in_time):
            places = PLACES if call is ops.vic else FEATURES
            found = call(FEATURES, places, 2, cutoff_distance=threshold, spatial_threshold=threshold)
            assert int(found.labels.max()) <= 1


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (core.FastV(retained_tokens=np.int64(64), layer=np.int32(2)), FastV(retained_tokens=64, layer=2)),
        (core.ViTCoP(retained_tokens=np.float32(64.5)), ViTCoP(retained_tokens=64.5)),
        (core.ViTCoP(retention_ratio=np.float64(0.25)), ViTCoP(retention_ratio=0.25)),
        (core.ViTCoP(retained_tokens=64, layers=(np.int64(1), np.int64(6))), ViTCoP(retained_tokens=64, layers=(1, 6))),
        (core.SparseVLM(counts=(np.uint8(200), np.uint8(30), np.uint8(17))), SparseVLM(counts=(200, 30, 17))),
        (core.VisionCut((np.int8(100), np.int8(100)), (0, 0)), VisionCut((100, 100), (0, 0))),
        (replace(SHAPE, hidden_size=cast("Any", np.int32(4096))), replace(SHAPE, hidden_size=4096)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_numpy_are_python_numbers(given: Any, plain: Any) -> None:
    assert given == plain
    assert repr(given) == repr(plain)
    if hasattr(plain, "plan"):
        arguments = {"num_layers": np.int64(32), "visual_tokens": [np.int16(576)] * 2, "images": np.int64(2)}
        assert given.plan(**arguments) == plain.plan(32, [576, 576], images=2)
        assert all(type(count) is int for count in given.plan(**arguments).tokens_per_layer)


def test_float32_is_read_as_what_it_was_written_for() -> None:
    assert check_positive("n", np.float32(0.1)) == Fraction(1, 10)


@pytest.mark.parametrize(
    "value", [10**42, 10**4300, -(10**5000), [10**5000] * 30, {"a": (10**5000,)}, Fraction(1, 10**9999)], ids=shown
)
def test_shown_is_bounded(value: Any) -> None:
    assert len(shown(value)) <= 500
    assert "10**" in shown(value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Error(s) in loading:\n\tsize mismatch"), "Error(s) in loading: size mismatch"),
        (KeyError("swoosh"), "KeyError: 'swoosh'"),
        (AssertionError(), "AssertionError"),
        (TypeError("x" * 9000), "x" * 497 + "..."),
    ],
    ids=["lines", "key", "nothing", "long"],
)
def test_an_error_of_others_is_told_in_a_line(error: Exception, said: str) -> None:
    assert told(error) == said


def test_shown_is_repr_of_what_is_short() -> None:
    for value in (0, -7, 10**20, 0.1, math.nan, "text", None, True, (1, 2), [1.5], Fraction(1, 3), {"a": 1}):
        assert shown(value) == repr(value)
