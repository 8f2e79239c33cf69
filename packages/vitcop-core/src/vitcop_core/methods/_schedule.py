"""ViTCoP's way from a budget to whole tokens on one model, and which budgets there are."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from vitcop_core.methods._reach import Reach
from vitcop_core.methods._stages import StageCounts, count_tokens
from vitcop_core.schedule import Ratios, feasible_range, solve_ratios


class Schedule(NamedTuple):
    """What turns a budget into the tokens of three stages.

    Attributes:
        depth: The layers that the schedule is made for.
        first: The layer that Stage II cuts before.
        deep: The layer that Stage III cuts before.
        vision_ratio: What Stage I leaves; None where it follows from the budget.
        decay: Of Stage II's tokens one in so many is left by Stage III; 1 for no Stage III.
        chained: How ratios become counts; see :func:`count_tokens`.
    """

    depth: int
    first: int
    deep: int
    vision_ratio: Fraction | None
    decay: Fraction
    chained: bool

    def ratios(self, retention: Fraction) -> Ratios:
        """Return the ratios for a share of all tokens; see :func:`vitcop_core.schedule.solve_ratios`."""
        return solve_ratios(
            retention, self.depth, self.first, self.deep, vision_ratio=self.vision_ratio, decay=self.decay
        )

    def counts(self, ratios: Ratios, units: Sequence[int]) -> StageCounts:
        """Return the tokens of the stages, of which there may be none."""
        return count_tokens(ratios, units, chained=self.chained)

    def reach(self, units: Sequence[int]) -> Reach:
        """Return which budgets can be met: those of the solver's range that leave every stage a token."""
        low, high = feasible_range(self.depth, self.first, self.deep, vision_ratio=self.vision_ratio, decay=self.decay)

        def fits(retention: Fraction) -> bool:
            return low < retention <= high and self.counts(self.ratios(retention), units).leave_something

        how = f" cutting before layers {self.first} and {self.deep} of {self.depth}"
        if self.vision_ratio is not None:
            how += f" when Stage I keeps {float(self.vision_ratio):.4g}"
        return Reach(fits, min(high, Fraction(1)), how, ". Other layers, or another pi1, move this range.")
