"""All of ViTCoP before the language model: for engines, where every layer holds the same tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from vitcop_core import ops
from vitcop_core.checks import MAX_LAYERS, check_choice, check_int, check_positive
from vitcop_core.diagnostics import Diagnosis, diagnose_cutoff
from vitcop_core.methods._budget import BudgetedMethod, Number
from vitcop_core.methods._reach import Reach, Sample, unreachable
from vitcop_core.methods._settings import check_cutoff
from vitcop_core.methods._vision import (
    PAPER_CUTOFF,
    VISION_SALIENCIES,
    on_tower,
    patch_saliency,
    take_patches,
    top_patches,
)
from vitcop_core.methods.base import unit_counts
from vitcop_core.ops.co_prune import group_means
from vitcop_core.plan import Plan, VisionCut, identity_plan
from vitcop_core.tokens import VisionSelection, VisionView

# The line 0.2 + 0.9 r of Table 8, and the centers per token 0.3 pi1 + 0.03, times 100: all counts are integers, so that
# a unit gets the same on every device and beside every other unit.
_PI1, _ALPHA = (20, 90), (30, 3)

Count = TypeVar("Count", int, Tensor)
"""One number on the host, or ``[C]`` int64, one for each unit, on the device."""


@dataclass(frozen=True)
class EarlyViTCoP(BudgetedMethod):
    """Settings of ViTCoP before the language model. Give exactly one of ``retained_tokens`` and ``retention_ratio``.

    Stage I leaves pi1 of an image's tokens, which VIC clusters. Algorithm 3 then keeps as many as the budget says, the
    same in every layer: Equation 5's quotas, the elites of each cluster, and the mean of the rest of it (Equation 6),
    taken of the features in front of the projector. There is no Stage III. A cut inside the language model ranks by the
    norms of keys; here the tokens' saliency in the vision tower stands in for them, or the keys that the first decoder
    layer would make of each token by itself.

    Serving engines need this form: they give all layers one block of memory, and tokens that leave half-way free none.

    Attributes:
        pi1: The share of an image's tokens that is clustered; None for 0.2 + 0.9 r (Table 8). Never less than what is
            kept.
        cutoff_distance: d_c of the clustering; see :class:`~vitcop_core.methods.ViTCoP`.
        spatial_threshold: tau of the clustering, on a grid of side 1.
        center_ratio: alpha, cluster centers per token that is clustered; None for 0.3 pi1 + 0.03. At most half of the
            tokens that are kept are centers.
        ranking: What the elites of a cluster are chosen by: ``"vision"``, the saliency of Stage I, or ``"layer0"``, the
            smallest norms of the keys that the first decoder layer makes of the projected tokens (Equation 4).
        vision_saliency: What Stage I ranks patches by; see :class:`~vitcop_core.methods.ViTCoP`.

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or not exactly one of the budgets is given.
    """

    pi1: Number | None = None
    cutoff_distance: float | Literal["auto"] | None = None
    spatial_threshold: float = 0.6
    center_ratio: Number | None = None
    ranking: Literal["vision", "layer0"] = "vision"
    vision_saliency: Literal["auto", "cls", "received"] = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget()
        for name in ("pi1", "center_ratio"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), at_most=1)
        check_cutoff(self.cutoff_distance)
        check_positive("spatial_threshold", self.spatial_threshold)
        check_choice("ranking", self.ranking, ("vision", "layer0"))
        check_choice("vision_saliency", self.vision_saliency, VISION_SALIENCIES)

    @property
    def cuts_depend_on_question(self) -> bool:
        """Never: only the image is looked at."""
        return False

    @property
    def needs_cls(self) -> bool:
        """Only with ``vision_saliency="cls"``."""
        return self.vision_saliency == "cls"

    def for_tower(self, *, has_cls: bool) -> Self:
        """Return it with the cutoff distance and the saliency of such a tower; see :meth:`Method.for_tower`."""
        cutoff, saliency = on_tower(self.cutoff_distance, self.vision_saliency, has_cls=has_cls)
        return replace(self, cutoff_distance=cutoff, vision_saliency=saliency)

    def diagnose(self, keys: Tensor) -> Diagnosis | None:
        """Return how a given cutoff distance fits the scale of the keys."""
        cutoff = PAPER_CUTOFF if self.cutoff_distance is None else self.cutoff_distance
        return None if cutoff == "auto" else diagnose_cutoff(keys, cutoff)

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the cut of one sample; see :meth:`Method.plan`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget is for more tokens than there are, or leaves some image or tile nothing (the message
                has the least budget that does not).
        """
        num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
        units, images = unit_counts(visual_tokens, images)
        tokens, budget = sum(units), self.budget(sum(units), images)
        if budget is None or budget == tokens:
            return identity_plan(num_layers, units)
        kept = tuple(math.floor(budget * unit / tokens) for unit in units)
        if min(kept) < 1:
            least = Fraction(1, min(units))
            raise unreachable(self, Sample(tokens, images), Reach(lambda share: share >= least))
        # Clusters are made and used up in one cut: no later one reads them.
        return Plan(num_layers, units, VisionCut(kept, (0,) * len(kept)), ())

    def cut_vision(
        self,
        seen: VisionView,
        keep: int,
        clusters: int,
        keeps: Tensor | None = None,
        cluster_counts: Tensor | None = None,
    ) -> VisionSelection:
        """Choose, cluster and co-prune; see :meth:`Method.cut_vision`."""
        units, patches = seen.hidden.shape[:2]
        offered = patches if seen.eligible is None else seen.eligible.shape[1]
        saliency = patch_saliency(seen, self.vision_saliency)
        # What the largest unit may need, on the host; a smaller one has its own numbers, on the device.
        most = self._entering(keep, offered)
        width = self._centers(keep, offered, most)
        entering = centers = None
        if keeps is not None:
            lengths = keeps.new_full((units,), offered) if seen.lengths is None else seen.lengths
            entering = self._entering(keeps, lengths)
            centers, width = self._centers(keeps, lengths, entering), max(1, keep // 2)
        index = top_patches(seen, saliency, most, entering)
        features, positions = (take_patches(each, index) for each in (seen.key_features().detach(), seen.positions))
        cutoff, _ = on_tower(self.cutoff_distance, self.vision_saliency, has_cls=seen.query_cls is not None)
        distance = ops.auto_cutoff(features, lengths=entering) if cutoff == "auto" else cutoff
        how: dict[str, Any] = {"cutoff_distance": distance, "spatial_threshold": self.spatial_threshold}
        found = ops.vic(features, positions, width, lengths=entering, counts=centers, **how)
        hidden = take_patches(seen.hidden, index)
        if self.ranking == "layer0":
            norms = ops.key_norm(seen.entry_keys(hidden).detach())
        else:
            norms = -saliency.gather(1, index.clamp(max=patches - 1))
        cut = ops.co_prune(hidden, found.labels, norms, keep, width, lengths=entering, counts=keeps)
        slot = cut.slot
        assert slot is not None  # of co_prune it never is
        place = index.gather(1, cut.index.clamp(max=most - 1)).masked_fill(cut.index == most, patches)

        def merge(values: Tensor) -> Tensor:
            return group_means(take_patches(values, index), slot, keep)

        return VisionSelection(
            index=place, clusters=None, saliency=saliency, hidden=cut.hidden, cutoff=distance, merge=merge
        )

    def _entering(self, keep: Count, tokens: Count) -> Count:
        """Return how many of a unit's tokens are clustered where so many are kept."""
        if self.pi1 is None:
            share = (_PI1[0] * tokens + _PI1[1] * keep) // 100
        else:
            pi1 = check_positive("pi1", self.pi1)
            share = tokens * pi1.numerator // pi1.denominator
        entering: Count = _least(_most(share, keep), tokens)
        return entering

    def _centers(self, keep: Count, tokens: Count, entering: Count) -> Count:
        """Return how many of those are centers of clusters; fractions are rounded up."""
        if self.center_ratio is not None:
            alpha = check_positive("center_ratio", self.center_ratio)
            wanted = -(-entering * alpha.numerator // alpha.denominator)
        elif self.pi1 is not None:
            alpha = (_ALPHA[0] * check_positive("pi1", self.pi1) + _ALPHA[1]) / 100
            wanted = -(-entering * alpha.numerator // alpha.denominator)
        else:  # alpha = .3 (.2 + .9 k / n) + .03, over 10,000 n
            base, slope = _ALPHA[0] * _PI1[0] + 100 * _ALPHA[1], _ALPHA[0] * _PI1[1]
            wanted = -(-entering * (base * tokens + slope * keep) // (10_000 * _most(tokens, 1)))
        centers: Count = _most(_least(wanted, keep // 2), 1)
        return centers


def _least(one: Any, other: Any) -> Any:
    return torch.minimum(one, other) if isinstance(one, Tensor) else min(one, other)


def _most(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor):
        return one.clamp(min=other) if isinstance(other, int) else torch.maximum(one, other)
    return max(one, other)
