"""The solver: the paper's table, its range, and what holds for every budget."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitcop_core import default_center_ratio, default_layers, feasible_range, solve_ratios


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (Fraction(1, 3), (".5000", ".4394", ".0879")),
        (Fraction(2, 9), (".4000", ".2869", ".0574")),
        (Fraction(1, 9), (".3000", ".1343", ".0269")),
        (Fraction(1, 18), (".2500", ".0581", ".0116")),
    ],
    ids=["66.7%", "77.8%", "88.9%", "94.4%"],
)
def test_ratios_are_those_of_table_8(retention: Fraction, expected: tuple[str, str, str]) -> None:
    ratios = solve_ratios(retention, 32, 2, 22)
    assert tuple(f"{float(ratio):.4f}"[1:] for ratio in ratios) == expected


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(32, (2, 22)), (40, (2, 28)), (48, (3, 33)), (28, (2, 19)), (24, (1, 17)), (8, (1, 6)), (4, (1, 3)), (3, (1, 2))],
)
def test_default_layers_scale_with_depth(num_layers: int, expected: tuple[int, int]) -> None:
    assert default_layers(num_layers) == expected


def test_default_layers_reject_a_model_too_shallow() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 3"):
        default_layers(2)


@pytest.mark.parametrize(
    ("vision_ratio", "alpha"), [("1/2", "18/100"), ("2/5", "15/100"), ("3/10", "12/100"), ("1/4", "105/1000")]
)
def test_center_ratio_is_that_of_the_scripts(vision_ratio: str, alpha: str) -> None:
    assert default_center_ratio(Fraction(vision_ratio)) == Fraction(alpha)


def test_range_of_32_layers_is_known() -> None:
    low, high = feasible_range(32, 2, 22)
    assert f"{float(low):.4f}" == "0.0132"
    assert high == Fraction(3, 4)


@pytest.mark.parametrize("retention", [Fraction(9, 10), Fraction(76, 100), Fraction(1, 76), Fraction(1, 1000)])
def test_infeasible_budget_raises_with_the_range(retention: Fraction) -> None:
    with pytest.raises(ValueError, match=r"retention must be above 0.0132 and at most 0.7500 for 32 layers cut"):
        solve_ratios(retention, 32, 2, 22)


def test_infeasible_budget_without_stage_one_names_what_stage_one_keeps() -> None:
    with pytest.raises(ValueError, match=r"above 0.0625 and at most 0.7500 .* when Stage I keeps 1"):
        solve_ratios(Fraction(1, 18), 32, 2, 22, vision_ratio=Fraction(1))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, int, int, Fraction, Fraction | None]:
    """A depth, two layers, a decay, and sometimes a given first ratio."""
    num_layers = draw(st.integers(3, 100))
    first = draw(st.integers(1, num_layers - 2))
    deep = draw(st.integers(first + 1, num_layers - 1))
    decay = draw(st.sampled_from([Fraction(5), Fraction(1), Fraction(7, 2)]))
    vision = draw(st.one_of(st.none(), st.fractions(Fraction(1, 1000), 1, max_denominator=1000)))
    return num_layers, first, deep, decay, vision


@given(schedules(), st.fractions(0, 1, max_denominator=10_000).filter(lambda share: share > 0))
def test_feasible_budget_is_met_exactly_and_in_order(
    schedule: tuple[int, int, int, Fraction, Fraction | None], share: Fraction
) -> None:
    num_layers, first, deep, decay, vision = schedule
    low, high = feasible_range(num_layers, first, deep, vision_ratio=vision, decay=decay)
    retention = low + share * (high - low)
    pi1, pi2, pi3 = solve_ratios(retention, num_layers, first, deep, vision_ratio=vision, decay=decay)
    assert 0 < pi3 <= pi2 <= pi1 <= 1
    assert pi2 == decay * pi3
    assert first * pi1 + (deep - first) * pi2 + (num_layers - deep) * pi3 == num_layers * retention


@given(schedules(), st.fractions(Fraction(1, 10_000), 2, max_denominator=10_000))
def test_budget_outside_the_range_raises(
    schedule: tuple[int, int, int, Fraction, Fraction | None], excess: Fraction
) -> None:
    num_layers, first, deep, decay, vision = schedule
    low, high = feasible_range(num_layers, first, deep, vision_ratio=vision, decay=decay)
    for retention in (low, low - excess, high + excess):
        with pytest.raises(ValueError, match=r"retention must be (above|a positive number)"):
            solve_ratios(retention, num_layers, first, deep, vision_ratio=vision, decay=decay)
