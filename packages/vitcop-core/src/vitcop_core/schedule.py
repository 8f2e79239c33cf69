"""The solver: from a budget to the ratio of tokens that each stage keeps, in exact fractions.

A language model of n layers runs its first l_s on the tokens that Stage I kept (ratio pi1), the next l_d - l_s on
those of Stage II (pi2), and the last n - l_d on those of Stage III (pi3). The mean over layers is the budget r, and
Stage III keeps one of every kappa tokens of Stage II:

    pi2 = (n r - l_s pi1) / ((l_d - l_s) + (n - l_d) / kappa),    pi3 = pi2 / kappa.

With kappa = 5 and cuts before the layers of index 2 and 22 of 32 this gives every ratio of the paper's Table 8 to all
digits. Equation 10 as printed counts one layer less before the first cut, and does not.
"""

from fractions import Fraction
from typing import NamedTuple

from vitcop_core.checks import MAX_LAYERS, check_int, check_positive, require

#: pi2 / pi3 in every row of Table 8.
DECAY = Fraction(5)


class Ratios(NamedTuple):
    """Share of the original visual tokens that each stage leaves.

    Attributes:
        vision: pi1, into the language model.
        shallow: pi2, from the first cut layer on.
        deep: pi3, from the second on.
    """

    vision: Fraction
    shallow: Fraction
    deep: Fraction


def default_layers(num_layers: int) -> tuple[int, int]:
    """Return the layers before which Stages II and III cut: the paper's 2 and 22 of 32, in proportion for other depths.

    40 layers are cut before 2 and 28, as in Table 8; 24 before 1 and 17, and 8 before 1 and 6. Halves are rounded down
    for the first and up for the second: a late first cut costs a shallow model most of its budget.

    Args:
        num_layers: Layers of the language model, at least 3.

    Raises:
        TypeError: ``num_layers`` is not an integer.
        ValueError: There are too few layers for two cuts, or more than 10,000.
    """
    num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
    require(num_layers >= 3, "num_layers", "at least 3, to cut before two of them", num_layers)
    deep = (22 * num_layers + 16) // 32
    return max(1, (2 * num_layers + 15) // 32), deep


def default_center_ratio(vision_ratio: Fraction) -> Fraction:
    """Return the cluster centers per kept token: the line through the released scripts' .18, .15 and .12.

    Args:
        vision_ratio: pi1.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not in (0, 1].
    """
    return Fraction(3, 10) * check_positive("vision_ratio", vision_ratio, at_most=1) + Fraction(3, 100)


def feasible_range(
    num_layers: int,
    first_layer: int,
    deep_layer: int,
    *,
    vision_ratio: Fraction | None = None,
    decay: Fraction = DECAY,
) -> tuple[Fraction, Fraction]:
    """Return the retention ratios that :func:`solve_ratios` can meet: above the first, up to and including the second.

    Args:
        num_layers: As there, like all arguments.
        first_layer: l_s.
        deep_layer: l_d.
        vision_ratio: pi1, or None.
        decay: kappa.

    Raises:
        TypeError: A layer is not an integer, or a ratio no number.
        ValueError: The layers are not in ascending order below ``num_layers``, or a ratio is out of range.
    """
    num_layers, first_layer, deep_layer = _checked_layers(num_layers, first_layer, deep_layer)
    weight = _weight(num_layers, deep_layer, _checked_decay(decay))
    if vision_ratio is not None:
        vision_ratio = check_positive("vision_ratio", vision_ratio, at_most=1)
        return vision_ratio * first_layer / num_layers, vision_ratio * weight / num_layers
    low = Fraction(first_layer, num_layers)
    line = Fraction(2, 10) * first_layer / (num_layers - Fraction(9, 10) * first_layer)
    return min(low, line), weight / num_layers


def solve_ratios(
    retention: Fraction,
    num_layers: int,
    first_layer: int,
    deep_layer: int,
    *,
    vision_ratio: Fraction | None = None,
    decay: Fraction = DECAY,
) -> Ratios:
    """Return the ratios of the three stages whose mean over the layers is ``retention``.

    Args:
        retention: r, the visual tokens at a layer's input, averaged over the layers, as a share of all.
        num_layers: n, layers of the language model.
        first_layer: l_s, index of the first layer after Stage II: as many layers run before it.
        deep_layer: l_d, index of the first layer after Stage III.
        vision_ratio: pi1. None for 0.2 + 0.9 r, which is Table 8, raised where Stage II would otherwise have to keep
            more than Stage I.
        decay: kappa; 1 for no Stage III.

    Raises:
        TypeError: A layer is not an integer, or a ratio no number.
        ValueError: An argument is out of range, or no ratios with 0 < pi3 <= pi2 <= pi1 <= 1 meet the budget.
    """
    low, high = feasible_range(num_layers, first_layer, deep_layer, vision_ratio=vision_ratio, decay=decay)
    retention, decay = check_positive("retention", retention), _checked_decay(decay)
    if vision_ratio is not None:
        vision_ratio = check_positive("vision_ratio", vision_ratio, at_most=1)
    given = "" if vision_ratio is None else f" when Stage I keeps {float(vision_ratio):.4g}"
    cuts = f"for {num_layers} layers cut before layers {first_layer} and {deep_layer}{given}"
    if not low < retention <= high:
        raise ValueError(
            f"retention must be above {float(low):.4f} and at most {float(high):.4f} {cuts}, got {float(retention):.4g}"
        )
    weight = _weight(num_layers, deep_layer, decay)
    total = num_layers * retention
    if vision_ratio is None:
        line = Fraction(2, 10) + Fraction(9, 10) * retention
        vision_ratio = min(Fraction(1), max(line, total / weight))
    shallow = (total - first_layer * vision_ratio) / (weight - first_layer)
    return Ratios(vision_ratio, shallow, shallow / decay)


def _checked_layers(num_layers: int, first_layer: int, deep_layer: int) -> tuple[int, int, int]:
    num_layers = check_int("num_layers", num_layers, 3, MAX_LAYERS)
    first_layer = check_int("first_layer", first_layer, 1, num_layers - 2)
    return num_layers, first_layer, check_int("deep_layer", deep_layer, first_layer + 1, num_layers - 1)


def _checked_decay(decay: Fraction) -> Fraction:
    checked = check_positive("decay", decay)
    # Stage III cannot keep more than Stage II.
    require(checked >= 1, "decay", "a number >= 1", decay)
    return checked


def _weight(num_layers: int, deep_layer: int, decay: Fraction) -> Fraction:
    """Count layers, those after the deep cut by what they keep of the shallow one."""
    return deep_layer + (num_layers - deep_layer) / decay
