"""PyramidDrop: drop a share of the visual tokens at each of several depths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from torch import Tensor

from vitcop_core import ops
from vitcop_core.checks import MAX_LAYERS, check_int, check_positive, check_tuple, require
from vitcop_core.methods._budget import (
    BudgetedMethod,
    Number,
    average,
    check_layers,
    cut_layers,
    falling_cuts,
    largest,
)
from vitcop_core.methods._reach import Sample, layers_reach, unreachable
from vitcop_core.methods.base import unit_counts
from vitcop_core.plan import DecoderCut, Plan, identity_plan
from vitcop_core.tokens import DecoderView, Selection

# The published stages, and those of smaller budgets: with the first alone no less than 144 of 576 can be met.
_STANDARD, _EARLY = (8, 16, 24), (2, 8, 16, 24)

# The solver's lambda is a multiple of 1 over this.
_STEPS = 1_000_000


@dataclass(frozen=True)
class PyramidDrop(BudgetedMethod):
    """Settings of PyramidDrop. Give exactly one of ``retained_tokens``, ``retention_ratio``, ``ratio`` and ``ratios``.

    Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    CVPR 2025. At the end of each stage the visual tokens are ranked by the attention of the prompt's last token, with
    the input norm, projections and rotary positions of the layer that is to see fewer, and the share lambda of them is
    kept, in order. Positions are packed at each drop, and generated tokens continue from there.

    The published schedule, ``ratios=(0.5, 0.25, 0.125)``, averages 270 of 576 tokens. A budget is met by four drops,
    the first after two layers, that keep lambda, lambda^2, lambda^3 and lambda^4 of the original tokens. Fractions of a
    token are dropped, but a stage keeps at least one.

    Attributes:
        ratio: lambda, instead of a budget.
        ratios: The share of the original tokens that each stage keeps, instead of a budget.
        layers: The layers to drop before, by index; None for 2, 8, 16 and 24 of 32, or 8, 16 and 24 for three
            ``ratios``, in proportion for other depths.

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or two contradict each other.
    """

    ratio: Number | None = None
    ratios: tuple[Number, ...] | None = None
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget("ratio", "ratios")
        if self.ratio is not None:
            check_positive("ratio", self.ratio, at_most=1)
        if self.layers is not None:
            check_layers(self.layers)
        if self.ratios is not None:
            self._check_ratios(self.ratios)

    def _check_ratios(self, ratios: object) -> None:
        check_tuple("ratios", ratios, "numbers")
        assert isinstance(ratios, tuple)  # checked
        shares = [check_positive("ratios", ratio, at_most=1) for ratio in ratios]
        descends = all(a >= b for a, b in pairwise(shares))
        require(len(shares) > 0 and descends, "ratios", "ratios of which none is above the one before", ratios)
        if self.layers is None:
            require(len(shares) in (3, 4), "ratios", "three or four where layers is None", ratios)
        else:
            require(len(shares) == len(self.layers), "ratios", f"as many as the layers {self.layers}", ratios)

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the drops of one sample; see :meth:`Method.plan`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget is for more tokens than there are, or cannot be met with these layers (the message
                has the least that can); or the model has no such layer.
        """
        num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
        units, images = unit_counts(visual_tokens, images)
        tokens, budget = sum(units), self.budget(sum(units), images)
        if budget == tokens:
            return identity_plan(num_layers, units)
        published = _STANDARD if self.ratios is not None and len(self.ratios) == 3 else _EARLY
        layers = cut_layers(self.layers, published, num_layers)
        counts = _counts(self._shares(budget, num_layers, layers, tokens, images), tokens)
        return Plan(num_layers, units, None, falling_cuts(layers, counts, tokens, "last_token", pack=True))

    def needs_attention(self, cut: DecoderCut) -> bool:
        """Return whether the layer is the one behind the cut, which alone is scored."""
        return False

    def cut_decoder(self, cut: DecoderCut, seen: DecoderView, keeps: Tensor | None = None) -> Selection:
        """Return the tokens to which the last prompt token would attend most; see :meth:`Method.cut_decoder`."""
        return Selection(ops.top_tokens(seen.own_attention(), cut.keep, lengths=seen.lengths, counts=keeps))

    def _shares(
        self, budget: Fraction | None, num_layers: int, layers: tuple[int, ...], tokens: int, images: int
    ) -> tuple[Fraction, ...]:
        if self.ratios is not None:
            return tuple(check_positive("ratios", ratio) for ratio in self.ratios)
        if budget is None:
            return _powers(check_positive("ratio", self.ratio), len(layers))
        ratio = _solve(budget, num_layers, layers, tokens)
        if ratio is None:
            least = average(num_layers, tokens, [(layer, 1) for layer in layers])
            raise unreachable(self, Sample(tokens, images), layers_reach(least / tokens, layers, num_layers))
        return _powers(ratio, len(layers))


def _powers(ratio: Fraction, stages: int) -> tuple[Fraction, ...]:
    return tuple(ratio**stage for stage in range(1, stages + 1))


def _counts(shares: Sequence[Fraction], tokens: int) -> tuple[int, ...]:
    return tuple(max(1, math.floor(share * tokens)) for share in shares)


@lru_cache(maxsize=256)
def _solve(budget: Fraction, num_layers: int, layers: tuple[int, ...], tokens: int) -> Fraction | None:
    """Return the largest lambda that exceeds the budget neither in fractions of a token nor in whole ones; None
    without.
    """

    def fits(step: int) -> bool:
        shares = _powers(Fraction(step, _STEPS), len(layers))
        exact = [(layer, share * tokens) for layer, share in zip(layers, shares, strict=True)]
        whole = list(zip(layers, _counts(shares, tokens), strict=True))
        return max(average(num_layers, tokens, exact), average(num_layers, tokens, whole)) <= budget

    step = largest(fits, _STEPS)
    return None if step is None else Fraction(step, _STEPS)
