"""Budgets out of reach: the message has the caller's unit, and its bounds are exactly what can be met."""

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitcop_core import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_core.checks import check_positive

METHODS = (FastV, PyramidDrop, SparseVLM, VisionZip, DivPrune, VisPruner, ViTCoP)
NUMBER = r"(\d+(?:\.\d+)?)"
IN_TOKENS = re.compile(
    rf"retained_tokens must be (?:at least {NUMBER}|from {NUMBER} to {NUMBER}) of the {NUMBER} visual"
)
IN_SHARES = re.compile(rf"retention_ratio must be (?:at least {NUMBER} |from {NUMBER} \({NUMBER}%\) to {NUMBER} )")


class Bounds(NamedTuple):
    least: Fraction
    most: Fraction | None
    step: Fraction


def is_met(kind: Any, name: str, budget: Any, where: Any, settings: Any) -> bool:
    """Whether a method plans for a budget; what it plans is then within it."""
    num_layers, units, images = where
    try:
        plan = kind(**{name: budget}, **settings).plan(num_layers, units, images=images)
    except ValueError:
        return False
    exact = check_positive(name, budget)
    total = exact * images if name == "retained_tokens" else exact * sum(units)
    rounds = settings.get("counts") == "chained" or settings.get("compat") == "official"
    assert rounds or plan.average_tokens <= total
    return True


def bounds_of(message: str) -> Bounds | None:
    """The bounds in a message, and what it counts them in; None where it says that nothing can be met."""
    if found := IN_TOKENS.match(message):
        one, low, high, _ = found.groups()
    elif found := IN_SHARES.match(message):
        one, low, percent, high = found.groups()
        assert percent is None or Fraction(percent) == 100 * Fraction(low)
    else:
        assert "can meet nothing less" in message, message
        return None
    named = (one or low, *([high] if high else []))
    places = max(len(text.partition(".")[2]) for text in named)
    places = max(places, 0 if message.startswith("retained_tokens") else 4)
    return Bounds(Fraction(one or low), Fraction(high) if high else None, Fraction(1, 10**places))


def check_bounds(kind: Any, name: str, asked: Any, where: Any, settings: Any) -> Bounds | None:
    """Asks for what cannot be met, and tries what the message names, and one step beside it."""
    num_layers, units, images = where
    with pytest.raises(ValueError, match=f"{name} must be .* {kind.__name__}.*, got ") as caught:
        kind(**{name: asked}, **settings).plan(num_layers, units, images=images)
    bounds = bounds_of(str(caught.value))
    if bounds is None:
        return None
    everything = Fraction(sum(units), images) if name == "retained_tokens" else Fraction(1)
    below = bounds.least - bounds.step
    assert is_met(kind, name, bounds.least, where, settings)
    assert is_met(kind, name, float(bounds.least), where, settings)
    assert below <= 0 or not is_met(kind, name, below, where, settings)
    if bounds.most is not None:
        above = bounds.most + bounds.step
        assert is_met(kind, name, bounds.most, where, settings)
        assert is_met(kind, name, float(bounds.most), where, settings)
        assert above >= everything or not is_met(kind, name, above, where, settings)
    assert is_met(kind, name, everything, where, settings)
    return bounds


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    "where",
    [(32, (576,), 1), (40, (576,), 1), (8, (144,), 1), (5, (36,), 1), (32, (576,) * 3, 3), (32, (576, 576, 300), 2)],
    ids=str,
)
def test_bounds_below_are_feasible(kind: Any, where: Any) -> None:
    for name, asked in (("retained_tokens", Fraction(1, 3)), ("retention_ratio", Fraction(1, 5000))):
        check_bounds(kind, name, asked, where, {})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": (1, 6)},
        {"layers": (20, 30)},
        {"pi1": 0.4},
        {"stage_one": False},
        {"stage_three": False},
        {"compat": "official"},
        {"counts": "chained"},
        {"pi1": 1e-5},
    ],
    ids=str,
)
@pytest.mark.parametrize("where", [(32, (576,), 1), (40, (576,), 1), (32, (576, 144, 20), 3)], ids=str)
@pytest.mark.parametrize("name", ["retained_tokens", "retention_ratio"])
def test_bounds_of_vitcop_are_feasible(name: str, where: Any, settings: Any) -> None:
    everything = Fraction(sum(where[1]), where[2]) if name == "retained_tokens" else Fraction(1)
    for share in (Fraction(1, 5000), Fraction(999, 1000)):
        if not is_met(ViTCoP, name, share * everything, where, settings):
            bounds = check_bounds(ViTCoP, name, share * everything, where, settings)
            assert (bounds is None) == (settings.get("pi1") == 1e-5)


@given(
    st.sampled_from(METHODS),
    st.integers(5, 60),
    st.lists(st.integers(1, 700), min_size=1, max_size=4),
    st.sampled_from(["retained_tokens", "retention_ratio"]),
    st.sampled_from([Fraction(1, 5000), Fraction(1, 400), Fraction(1, 60), Fraction(97, 100), Fraction(999, 1000)]),
    st.integers(1, 4),
)
def test_any_bounds_are_feasible(
    kind: Any, num_layers: int, units: list[int], name: str, share: Fraction, images: int
) -> None:
    where = num_layers, tuple(units), min(images, len(units))
    everything = Fraction(sum(units), where[2]) if name == "retained_tokens" else Fraction(1)
    if not is_met(kind, name, share * everything, where, {}):
        check_bounds(kind, name, share * everything, where, {})


@pytest.mark.parametrize(
    ("kind", "budget", "message"),
    [
        (
            ViTCoP,
            {"retained_tokens": 500},
            "retained_tokens must be from 12 to 432 of the 576 visual tokens of an image, or all of them, for ViTCoP "
            "cutting before layers 2 and 22 of 32, got 500. Other layers, or another pi1, move this range.",
        ),
        (
            ViTCoP,
            {"retention_ratio": Fraction(500, 576)},
            "retention_ratio must be from 0.0196 (1.96%) to 0.75 (75%), or 1, for ViTCoP cutting before layers 2 and "
            "22 of 32, got 0.868056. Other layers, or another pi1, move this range.",
        ),
        (
            FastV,
            {"retained_tokens": 20},
            "retained_tokens must be at least 37 of the 576 visual tokens of an image for FastV cutting before layer 2 "
            "of 32, got 20. Other layers move this bound.",
        ),
        (
            SparseVLM,
            {"retention_ratio": 0.01},
            "retention_ratio must be at least 0.1006 (10.06%) for SparseVLM cutting before layers 3, 7 and 16 of 32, "
            "got 0.01. Other layers move this bound.",
        ),
        (
            VisionZip,
            {"retained_tokens": 0.25},
            "retained_tokens must be at least 1 of the 576 visual tokens of an image for VisionZip, got 0.25",
        ),
    ],
)
def test_message_has_the_unit_that_was_used(kind: Any, budget: Any, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        kind(**budget).plan(32, 576)
    assert str(caught.value) == message


def test_images_of_several_sizes_have_a_mean_rounded_down() -> None:
    with pytest.raises(ValueError, match=r"of the 333\.33 visual tokens of an image"):
        ViTCoP(retained_tokens=1).plan(32, (500, 400, 100), images=3)
    with pytest.raises(ValueError, match=r"at most the 333\.33 visual tokens of an image, got 334"):
        FastV(retained_tokens=334).plan(32, (500, 400, 100), images=3)
    assert math.isclose(
        float(ViTCoP(retained_tokens=200).plan(32, (500, 400, 100), images=3).average_tokens), 599, abs_tol=3
    )
