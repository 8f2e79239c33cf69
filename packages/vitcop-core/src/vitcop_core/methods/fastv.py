"""FastV: after two layers, keep what the last token of the prompt attends to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from vitcop_core import ops
from vitcop_core.checks import MAX_LAYERS, check_int
from vitcop_core.methods._budget import BudgetedMethod, average, cut_layers, falling_cuts
from vitcop_core.methods._reach import Sample, layers_reach, unreachable
from vitcop_core.methods.base import unit_counts
from vitcop_core.plan import DecoderCut, Plan, identity_plan
from vitcop_core.tokens import DecoderView, Selection

_LAYERS = (2,)


@dataclass(frozen=True)
class FastV(BudgetedMethod):
    """Settings of FastV. Give exactly one of ``retained_tokens``, ``retention_ratio`` and ``keep``.

    Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
    Vision-Language Models", ECCV 2024. Its filtering layer K is where the cut stands: layer K - 1 ranks the tokens,
    by the softmaxed attention of the last prompt token averaged over heads (the released code's reading of the paper's
    average attention score), and layer K is the first that sees fewer. Positions stay the original ones.

    Attributes:
        keep: The visual tokens of each image from layer K on, instead of a budget.
        layer: K, by index; None for 2 of 32, in proportion for other depths.

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or not exactly one of the three is given.
    """

    keep: int | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget("keep")
        if self.keep is not None:
            check_int("keep", self.keep, 1)
        if self.layer is not None:
            check_int("layer", self.layer, 1)

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the cut of one sample; see :meth:`Method.plan`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget is for more tokens than there are, or cannot be met with all of them in the layers
                before the cut (the message has the least that can); or the model has no such layer.
        """
        num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
        units, images = unit_counts(visual_tokens, images)
        tokens, budget = sum(units), self.budget(sum(units), images)
        if budget == tokens:
            return identity_plan(num_layers, units)
        layers = cut_layers(None if self.layer is None else (self.layer,), _LAYERS, num_layers)
        keep = self._solve(budget, num_layers, layers[0], tokens, images)
        return Plan(num_layers, units, None, falling_cuts(layers, (keep,), tokens, "last_token", pack=False))

    def cut_decoder(self, cut: DecoderCut, seen: DecoderView, keeps: Tensor | None = None) -> Selection:
        """Return the tokens with most attention from the last prompt token; see :meth:`Method.cut_decoder`."""
        return Selection(ops.top_tokens(seen.attention(), cut.keep, lengths=seen.lengths, counts=keeps))

    def _solve(self, budget: Fraction | None, num_layers: int, layer: int, tokens: int, images: int) -> int:
        if budget is None:
            return check_int("keep", self.keep, 1) * images
        keep = math.floor((budget * num_layers - layer * tokens) / (num_layers - layer))
        if keep < 1:
            least = average(num_layers, tokens, [(layer, 1)]) / tokens
            raise unreachable(self, Sample(tokens, images), layers_reach(least, (layer,), num_layers))
        return keep
