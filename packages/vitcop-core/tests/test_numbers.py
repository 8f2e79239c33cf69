"""Odd numbers: every public function takes them as they are meant, or says by name what it wants instead."""

import inspect
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vitcop_core
from vitcop_core import (
    DecoderCut,
    FastV,
    LanguageModelShape,
    Plan,
    PyramidDrop,
    SparseVLM,
    VisionCut,
    VisionView,
    VisionZip,
    ViTCoP,
    cost,
    identity_plan,
    ops,
    pooled_plan,
    presets,
    schedule,
)
from vitcop_core.checks import check_finite, check_int, check_positive
from vitcop_core.diagnostics import cutoff_scale
from vitcop_core.shown import shown

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
PLANNED: dict[str, Any] = {"num_layers": 8, "visual_tokens": [576, 576], "images": 1}
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
    "layer_macs": (cost.layer_macs, {"shape": SHAPE, "tokens": 5}),
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
    "VisionZip": (VisionZip, {"retention_ratio": 0.5}),
    "VisionZip with counts": (VisionZip, {"counts": (54, 10)}),
    "ViTCoP": (ViTCoP, {field.name: getattr(ViTCoP(retained_tokens=64), field.name) for field in fields(ViTCoP)}),
    "ViTCoP with ratios": (ViTCoP, {"ratios": (0.5, 0.2, 0.1)}),
    "ViTCoP with layers": (ViTCoP, {"retention_ratio": 0.5, "layers": (2, 4), "pi1": 0.7}),
    **{
        f"{type(method).__name__}.plan {number}": (method.plan, PLANNED)
        for number, method in enumerate(
            [*presets.equal_budgets(400).values(), FastV(keep=30), PyramidDrop(ratio=0.5), SparseVLM(counts=(66, 30, 17))]
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
    "gather_tokens": (ops.gather_tokens, {"tensors": [WEIGHTS], "index": LABELS}),
    "product": (ops.product, {"left": KEYS, "right": KEYS.mT}),
    "cutoff_scale": (cutoff_scale, {"features": FEATURES, "cutoff_distance": 8.0}),
    "VisionView": (VisionView, {**VIEW, "pool": 1, "grid": None, "frames": None}),
}
SLOTS = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]

# Holders of tensors, which are made in every step and check shapes where they are used.
UNCHECKED = {"Clusters", "DecoderView", "PromptView", "Ratios", "Selection", "VisionSelection", "Method"}


def refuses(call: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """Whether a call is refused; fails unless by an error that is documented, says what it wants, and is short."""
    try:
        found = call(**arguments)
        if isinstance(found, Plan):
            assert found.average_tokens > 0
        elif isinstance(found, FastV | PyramidDrop | SparseVLM | VisionZip | ViTCoP):
            refuses(found.plan, PLANNED)
    except (TypeError, ValueError) as error:
        assert any(words in str(error) for words in (" must be ", " must have ", "give exactly one of ")), repr(error)
        assert len(str(error)) < 700
        return True
    return False


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
    assert not refuses(call, arguments)
    for odd in ODD.values():
        refuses(call, {**arguments, argument: odd})


@given(st.data())
def test_odd_numbers_together_are_taken_or_refused(data: st.DataObject) -> None:
    call, arguments = CALLS[data.draw(st.sampled_from([*CALLS]))]
    odd = data.draw(st.dictionaries(st.sampled_from([*arguments]), st.sampled_from([*ODD]), min_size=2, max_size=4))
    inside = data.draw(st.booleans())
    values = {name: ODD[key] for name, key in odd.items()}
    refuses(call, arguments | {name: (value, value) if inside else value for name, value in values.items()})
