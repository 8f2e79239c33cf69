"""From ViTCoP's ratios to whole tokens and clusters."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from vitcop_core.schedule import Ratios


class StageCounts(NamedTuple):
    """Tokens that the stages leave.

    Attributes:
        units: After Stage I, in each unit.
        shallow: After Stage II, in the sample; never more than there are.
        deep: After Stage III, in the sample; never more than there are.
    """

    units: tuple[int, ...]
    shallow: int
    deep: int

    @property
    def leave_something(self) -> bool:
        """Whether every stage and every unit is left with a token."""
        return min(*self.units, self.shallow, self.deep) >= 1


def count_tokens(ratios: Ratios, units: Sequence[int], *, chained: bool) -> StageCounts:
    """Return the tokens of each stage; there may be no stage.

    Args:
        ratios: Share of the original tokens that each stage leaves.
        units: Tokens of each unit before any cut.
        chained: Whether Stages II and III round a share of what the stage before left, as the released code does,
            instead of taking the floor of a share of all tokens.
    """
    kept = tuple(math.floor(ratios.vision * unit) for unit in units)
    entry = sum(kept)
    if chained:
        shallow = round(entry * ratios.shallow / ratios.vision)
        deep = round(shallow * ratios.deep / ratios.shallow)
    else:
        shallow = math.floor(ratios.shallow * sum(units))
        deep = math.floor(ratios.deep * sum(units))
    # With pi2 close to pi1 the floors of many units may add up to less than the floor of the sum.
    shallow = min(shallow, entry)
    return StageCounts(kept, shallow, min(deep, shallow))


def clusters_per_unit(center_ratio: Fraction, counts: StageCounts, *, round_up: bool, capped: bool) -> tuple[int, ...]:
    """Return the cluster centers of each unit: a share of the tokens that Stage I kept, and at least one.

    Args:
        center_ratio: alpha.
        counts: Tokens of the stages.
        round_up: Whether fractions are rounded up or down.
        capped: Whether clusters may take no more than half of Stage II's budget. Algorithm 3 keeps one token a
            cluster, so that many clusters would leave no elites, and more than the budget would not fit.
    """
    cap = max(1, counts.shallow // (2 * len(counts.units)))
    whole = math.ceil if round_up else math.floor
    wanted = [max(1, min(whole(center_ratio * kept), kept)) for kept in counts.units]
    return tuple(min(count, cap) if capped else count for count in wanted)
