"""VisPruner: important tokens by the tower's attention, and of the others those unlike each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, Self

import torch
from torch import Tensor

from vitcop_core.checks import MAX_LAYERS, check_choice, check_int, check_positive
from vitcop_core.methods._budget import BudgetedMethod, Number, share_out
from vitcop_core.methods._likeness import Likeness
from vitcop_core.methods._vision import VISION_SALIENCIES, chosen_patches, offered_patches, patch_saliency
from vitcop_core.methods.base import unit_counts
from vitcop_core.ops._library import valid_tokens
from vitcop_core.plan import Plan, VisionCut, identity_plan
from vitcop_core.tokens import VisionSelection, VisionView

_STEP = 8
"""Tokens that are dropped at a time, in the released code."""


@dataclass(frozen=True)
class VisPruner(BudgetedMethod):
    """Settings of VisPruner. Give exactly one of ``retained_tokens`` and ``retention_ratio``.

    Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025.
    Of T tokens of an image, ``floor(T r)`` are *important*: those with most of the CLS token's attention. The others
    are *diverse*: of what is left, duplicates are dropped step by step until so many remain. Each step splits the
    remaining tokens into two halves, every other token in each, and drops those of the first half that are most
    similar to a token of the second, by the cosine of the features before the projector.

    The steps are those of the authors' code (``encode_images`` in ``llava_arch.py`` of
    github.com/Theia-4869/VisPruner). Up to 8 tokens are dropped at a time. At first the tokens stand in the order of
    attention; after each step the rest of the first half comes first, the most similar ahead, and then the second half.

    vitcop differs where that code has no answer. It fails on an odd number of tokens, and where more would go than the
    first half has; here the first half has one token more, and no more than that go. It chooses among the padding of
    tiles too, which the model then leaves out; here padding is never chosen. It has no rule for towers without a CLS
    token; here the attention that a patch receives stands in. Ties go to the token that stands first.

    Attributes:
        important_ratio: The share r of important tokens, in (0, 1].
        vision_saliency: What ranks patches: attention of the CLS token (``"cls"``), attention that a patch receives
            from all tokens (``"received"``), or the first where the tower has such a token (``"auto"``).

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or not exactly one of the two budgets is given.
    """

    important_ratio: Number = 0.5
    vision_saliency: Literal["auto", "cls", "received"] = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget()
        check_positive("important_ratio", self.important_ratio, at_most=1)
        check_choice("vision_saliency", self.vision_saliency, VISION_SALIENCIES)

    @property
    def cuts_depend_on_question(self) -> bool:
        """Never: only the vision tower is looked at."""
        return False

    @property
    def needs_cls(self) -> bool:
        """Only with ``vision_saliency="cls"``."""
        return self.vision_saliency == "cls"

    def for_tower(self, *, has_cls: bool) -> Self:
        """Return it with the saliency of such a tower; see :meth:`Method.for_tower`."""
        own: Literal["cls", "received"] = "cls" if has_cls else "received"
        return replace(self, vision_saliency=own) if self.vision_saliency == "auto" else self

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the cut of one sample, whose :attr:`VisionCut.clusters` are the diverse tokens; see
        :meth:`Method.plan`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget is for more tokens than there are, or leaves some image or tile nothing (the message
                has the least budget that does not).
        """
        num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
        units, images = unit_counts(visual_tokens, images)
        budget = self.budget(sum(units), images)
        assert budget is not None  # one of the two is given
        if budget == sum(units):
            return identity_plan(num_layers, units)
        kept, share = share_out(self, units, images, budget), self._important
        return Plan(num_layers, units, VisionCut(kept, tuple(keep - math.floor(share * keep) for keep in kept)), ())

    @property
    def _important(self) -> Fraction:
        return check_positive("important_ratio", self.important_ratio, at_most=1)

    def cut_vision(
        self,
        seen: VisionView,
        keep: int,
        clusters: int,
        keeps: Tensor | None = None,
        cluster_counts: Tensor | None = None,
    ) -> VisionSelection:
        """Keep important and diverse tokens of each unit; see :meth:`Method.cut_vision`.

        Args:
            seen: The units.
            keep: Tokens of each.
            clusters: The diverse ones among them.
            keeps: ``[C]`` int64, tokens of each unit, which may be 0; None where units are alike.
            cluster_counts: ``[C]`` int64, the diverse ones of each unit; None where units are alike.
        """
        saliency = patch_saliency(seen, self.vision_saliency)
        features = offered_patches(seen)
        keep = check_int("keep", keep, 1, features.shape[1])
        ranked = saliency if seen.eligible is None else saliency.gather(1, seen.eligible)
        ranked = ranked.masked_fill(ranked.isnan() | ~valid_tokens(ranked, seen.lengths), -math.inf)
        order, likeness = ranked.argsort(dim=1, descending=True, stable=True), Likeness(features)
        if seen.lengths is None and keeps is None and cluster_counts is None:
            important = keep - clusters
            chosen = torch.cat([order[:, :important], _diverse(order[:, important:], likeness, clusters)], dim=1)
        else:
            whole = torch.full_like(order[:, 0], order.shape[1])
            sizes = whole if seen.lengths is None else seen.lengths
            totals = torch.minimum(torch.full_like(whole, keep) if keeps is None else keeps, sizes)
            counts = torch.full_like(whole, clusters) if cluster_counts is None else cluster_counts
            chosen = _ragged(order, likeness, sizes, totals, torch.minimum(counts, totals), keep)
        return VisionSelection(chosen_patches(seen, chosen), clusters=None, saliency=saliency)


def _after(size: int) -> int:
    """Return the fewest tokens that a step may leave of ``size``."""
    return max(size - _STEP, size // 2)


def _diverse(order: Tensor, likeness: Likeness, count: int) -> Tensor:
    """Drop duplicates until ``count`` are left.

    Args:
        order: ``[C, n]`` int64, the tokens that are not important, in order of attention.
        likeness: Of the unit's tokens.
        count: From 0 to n.

    Returns:
        ``[C, count]`` int64.
    """
    if count == 0:
        return order[:, :0]
    while (size := order.shape[1]) > count:
        first, second = order[:, ::2], order[:, 1::2]
        closest = likeness.of(first, second).amax(2).argsort(dim=1, descending=True, stable=True)
        dropped = size - max(_after(size), count)
        order = torch.cat([first.gather(1, closest[:, dropped:]), second], dim=1)
    return order


def _ragged(order: Tensor, likeness: Likeness, sizes: Tensor, totals: Tensor, counts: Tensor, keep: int) -> Tensor:
    """Choose in units that have, or keep, different numbers: the same as `_diverse` in each.

    The device alone knows the numbers, so steps are taken until none can have anything left to drop.

    Args:
        order: ``[C, n]`` int64, the tokens in order of attention, those past a unit's own last.
        likeness: Of the unit's tokens.
        sizes: ``[C]`` int64, tokens of each unit.
        totals: ``[C]`` int64, tokens that each keeps, at most its size.
        counts: ``[C]`` int64, the diverse ones among them, at most as many.
        keep: The most that one keeps.

    Returns:
        ``[C, keep]`` int64; n for those that a unit keeps fewer of.
    """
    size, (important, left, counts) = order.shape[1], (each.unsqueeze(1) for each in (totals - counts, sizes, counts))
    place = torch.arange(size, device=order.device)
    rest, left, most = order.gather(1, (place + important).clamp(max=size - 1)), left - important, size
    while most > 1:
        first, second = rest[:, ::2], rest[:, 1::2]
        halves = torch.div(left + 1, 2, rounding_mode="floor")
        alike = likeness.of(first, second).masked_fill(
            (place[: second.shape[1]] >= left - halves).unsqueeze(1), -math.inf
        )
        alike = alike.amax(2).masked_fill(place[: first.shape[1]] >= halves, -math.inf)
        dropped = torch.minimum((left - counts).clamp(0, _STEP), halves)
        both = torch.cat([first.gather(1, alike.argsort(dim=1, descending=True, stable=True)), second], dim=1)
        most = _after(most)
        after = place[: max(most, keep)]
        source = after + torch.where(after < halves - dropped, dropped, first.shape[1] - (halves - dropped))
        rest, left = both.gather(1, source.clamp(max=both.shape[1] - 1)), left - dropped
    chosen = torch.where(place[:keep] < important, order[:, :keep], size)
    diverse = torch.where(place[:keep] < counts, rest[:, :keep], size)
    return torch.cat([chosen, diverse], dim=1).sort(dim=1).values[:, :keep]
