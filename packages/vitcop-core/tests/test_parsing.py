"""Methods as text: what they mean, and that nothing in them is run."""

import subprocess
import sys
import warnings
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitcop_core
from vitcop_core import DivPrune, FastV, Method, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP, find_method
from vitcop_core.parsing import METHODS, find_methods


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("vitcop", {"retained_tokens": 64}, ViTCoP(retained_tokens=64)),
        ("vitcop(layers=(1, 6))", {"retained_tokens": 64}, ViTCoP(retained_tokens=64, layers=(1, 6))),
        (" ViTCoP( stage_three = False )", {"retention_ratio": 0.1}, ViTCoP(retention_ratio=0.1, stage_three=False)),
        ("FASTV()", {"retention_ratio": Fraction(1, 9)}, FastV(retention_ratio=Fraction(1, 9))),
        ("fastv(keep=30)", {}, FastV(keep=30)),
        ("fastv(retained_tokens=64, layer=3)", {}, FastV(retained_tokens=64, layer=3)),
        ("pyramiddrop(ratios=(0.5, 0.25, 0.125))", {}, PyramidDrop(ratios=(0.5, 0.25, 0.125))),
        ("sparsevlm(counts=(66, 30, 17))", {}, SparseVLM(counts=(66, 30, 17))),
        ("visionzip", {"retained_tokens": 64.5}, VisionZip(retained_tokens=64.5)),
        ("DivPrune", {"retained_tokens": 56}, DivPrune(retained_tokens=56)),
        (
            "vispruner(important_ratio=0.25)",
            {"retention_ratio": 0.5},
            VisPruner(retention_ratio=0.5, important_ratio=0.25),
        ),
        ("vitcop(compat='official')", {"retained_tokens": 64}, ViTCoP(retained_tokens=64, compat="official")),
    ],
)
def test_text_is_the_method(text: str, budget: Any, expected: Method) -> None:
    assert find_method(text, **budget) == expected


def test_every_method_has_a_name() -> None:
    names = {name for name in vitcop_core.__all__ if isinstance(getattr(vitcop_core, name), type)}
    kinds = {name for name in names if issubclass(getattr(vitcop_core, name), Method)} - {"Method"}
    assert set(METHODS.values()) == kinds
    assert all(name == kind.lower() for name, kind in METHODS.items())


def test_several_methods_have_labels() -> None:
    found = find_methods("fastv(layer=3), vitcop", retained_tokens=64)
    assert [label for label, _ in found] == ["FastV, layer=3", "ViTCoP"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text must be a name, or a name with settings"),
        (
            "magic",
            "text must be one of vitcop, fastv, pyramiddrop, sparsevlm, visionzip, divprune, vispruner, "
            "earlyvitcop, got 'magic'",
        ),
        ("vitcop, fastv", "text must be one method, got 'vitcop, fastv'"),
        ("vitcop(layers={[]:1})", "layers must be a plain value"),
        ("vitcop(layers={{}})", "layers must be a plain value"),
        ("vitcop(layers=__import__('os').getcwd())", "layers must be a plain value"),
        ("vitcop(layers=f'{1}')", "layers must be a plain value"),
        ("vitcop(pi1=1/3)", "pi1 must be a plain value"),
        ("vitcop(layers=2)", "layers must be a tuple of two integers, got 2 (int)"),
        ("vitcop(layers=(1, 2, 3))", "layers must be a tuple of two integers"),
        ("vitcop(layers=(0, 6))", "layers must be an integer from 1 to 10000, got 0"),
        ("vitcop(cutoff_distance=1e999)", "cutoff_distance must be a positive number, got inf"),
        ("vitcop(cutoff_distance='8')", "cutoff_distance must be a positive number or 'auto', got '8'"),
        ("fastv(layer=0x" + "f" * 900 + ")", "layer must be an integer from 1 to 2147483647, got about 10**1083"),
        ("fastv(layer=0x" + "f" * 6000 + ")", "text must be at most 1000 characters long, got 6015"),
        ("fastv(layer=" + "9" * 5000 + ")", "text must be at most 1000 characters long"),
        ("fastv(layer=" + "-" * 900 + "1)", "layer must be"),
        ("(" * 900, "text must be a name"),
        ("[" * 900 + "]" * 100, "text must be a name"),
        ("vitcop(\0)", "text must be a name"),
        ("\ud800", "text must be a name"),
        ("vitcop(1)", "text must be a name, or a name with settings"),
        ("vitcop(*x)", "text must be a name, or a name with settings"),
        ("vitcop(**x)", "text must be a name, or a name with settings"),
        ("vitcop.plan()", "text must be a name, or a name with settings"),
        ("fastv(depth=2)", "setting must be one of keep, layer for FastV, got 'depth'"),
        ("fastv(layer=2, layer=3)", "layer must be given once"),
        (
            "fastv(retained_tokens=9)",
            "retained_tokens must be left out, as the budget of FastV comes from the arguments",
        ),
        ("fastv(keep=30)", "retained_tokens, retention_ratio or keep must be given, and one alone"),
    ],
)
def test_text_that_does_not_fit_is_a_value_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r" must be ") as caught:
        find_method(text, retained_tokens=64)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700


def test_budget_must_be_somewhere_and_fit() -> None:
    with pytest.raises(ValueError, match="must be given, and one alone, got none"):
        find_method("vitcop")
    with pytest.raises(ValueError, match="retained_tokens must be a number from 1e-300 to 1e300"):
        find_method("vitcop", retained_tokens=10**400)
    with pytest.raises(ValueError, match="got retained_tokens and retention_ratio"):
        find_method("vitcop", retained_tokens=64, retention_ratio=0.5)


@pytest.mark.parametrize("text", [None, 3, b"vitcop", ["vitcop"]])
def test_what_is_no_text_is_a_type_error(text: Any) -> None:
    with pytest.raises(TypeError, match="text must be a text such as"):
        find_method(text, retained_tokens=64)


def test_escapes_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="compat must be one of"):
            find_method(r"vitcop(compat='\d')", retained_tokens=64)


PIECES = [*"vitcop(layers=1,6)[]{}:*'\"\\ \n.-+0xfj#", "fastv", "vitcop", "layers", "None", "lambda", "10**9"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_text_is_a_method_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(find_method(text, retained_tokens=64), Method)
    except ValueError as error:
        said = str(error)
        assert len(said) < 700


def test_parsing_waits_for_torch_until_there_is_a_method() -> None:
    code = "import sys, vitcop_core.parsing as p; print('torch' in sys.modules, hasattr(p, 'find_method'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False True\n"
