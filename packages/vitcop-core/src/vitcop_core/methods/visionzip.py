"""VisionZip: dominant and contextual tokens, chosen in the vision tower alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from vitcop_core import ops
from vitcop_core.checks import MAX_LAYERS, check_choice, check_int
from vitcop_core.methods._budget import BudgetedMethod, check_counts, share_out
from vitcop_core.methods._vision import VISION_SALIENCIES, patch_saliency, take_patches
from vitcop_core.methods.base import unit_counts
from vitcop_core.ops._library import accumulator, valid_tokens
from vitcop_core.ops.co_prune import group_means
from vitcop_core.plan import Plan, VisionCut, identity_plan
from vitcop_core.tokens import VisionSelection, VisionView, places_of

# Of 192 tokens 30 are contextual in the published settings, and so of 128 and 64, rounded.
_CONTEXTUAL = Fraction(30, 192)


@dataclass(frozen=True)
class VisionZip(BudgetedMethod):
    """Settings of VisionZip. Give exactly one of ``retained_tokens``, ``retention_ratio`` and ``counts``.

    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, without training.
    Of each image or tile it keeps D *dominant* tokens, CLS and the D - 1 patches with most of its attention, and C
    *contextual* ones: of the other patches every s-th is a target, each of the rest joins the target whose key is most
    similar, and a target's feature plus the mean of those that joined it is the contextual token (a sum, as released).

    CLS takes the first placeholder, the dominant patches follow in order, then the contextual tokens. Of a tower
    without a CLS token the D patches that receive most attention are dominant.

    A budget is split in the published ratio 162 : 30. Where one token is left, it is CLS, or a dominant patch.

    Attributes:
        counts: (D, C) of each image or tile, instead of a budget; less in the same ratio of a unit with fewer tokens.
        vision_saliency: What ranks patches: attention of the CLS token (``"cls"``), attention that a patch receives
            from all tokens (``"received"``), or the first where the tower has such a token (``"auto"``).

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or not exactly one of the three is given.
    """

    counts: tuple[int, int] | None = None
    vision_saliency: Literal["auto", "cls", "received"] = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget("counts")
        if self.counts is not None:
            check_counts(self.counts, "dominant", "contextual")
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
        """Return the cut of one sample, whose :attr:`VisionCut.clusters` are the contextual tokens; see
        :meth:`Method.plan`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget is for more tokens than there are, or leaves some image or tile nothing (the message
                has the least budget that does not).
        """
        num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
        units, images = unit_counts(visual_tokens, images)
        budget = self.budget(sum(units), images)
        if budget == sum(units):
            return identity_plan(num_layers, units)
        if budget is None:
            assert self.counts is not None  # one of the three is given
            share = Fraction(self.counts[1], sum(self.counts))
            kept = tuple(min(sum(self.counts), unit) for unit in units)
        else:
            share, kept = _CONTEXTUAL, share_out(self, units, images, budget)
        contextual = tuple(min(max(1, math.floor(share * keep + Fraction(1, 2))), keep - 1) for keep in kept)
        return Plan(num_layers, units, VisionCut(kept, contextual), ())

    def cut_vision(
        self,
        seen: VisionView,
        keep: int,
        clusters: int,
        keeps: Tensor | None = None,
        cluster_counts: Tensor | None = None,
    ) -> VisionSelection:
        """Keep D + C tokens of each unit, C of them contextual; see :meth:`Method.cut_vision`.

        Args:
            seen: The units.
            keep: D + C.
            clusters: C.
            keeps: ``[C]`` int64, D + C of each unit, which may be 0; None where units are alike.
            cluster_counts: ``[C]`` int64, C of each unit; None where units are alike.

        Raises:
            ValueError: The view of a tower with a CLS token lacks that token's feature.
        """
        cls = seen.hidden_cls if seen.leading else None
        if seen.leading and cls is None:
            raise ValueError("hidden_cls must be given for VisionZip, got None")
        units, patches = seen.hidden.shape[:2]
        saliency = patch_saliency(seen, self.vision_saliency)
        offered = seen.eligible
        if offered is None:
            offered = torch.arange(patches, device=saliency.device).expand(units, -1)
        total = torch.full((units,), keep, device=offered.device) if keeps is None else keeps
        merged = torch.full_like(total, clusters) if cluster_counts is None else cluster_counts
        clusters = max(clusters, 1)  # a unit that keeps one token has none, and its column stays empty
        hidden, keys = take_patches(seen.hidden, offered), take_patches(_mean_keys(seen), offered)

        most = max(min(keep, offered.shape[1]), 1)
        ranked = saliency.gather(1, offered)
        dominant = ops.top_tokens(
            ranked, most, lengths=seen.lengths, counts=(total - merged - seen.leading).clamp(min=0)
        )
        is_dominant = _marked(dominant, offered.shape[1])
        groups = _contextual_groups(keys, valid_tokens(ranked, seen.lengths) & ~is_dominant, merged, clusters)
        used = [places < offered.shape[1] for places in (dominant, groups.targets)]

        def merge(values: Tensor, first: Tensor | None = None) -> Tensor:
            made, own = [take_patches(values, dominant), _contextual(values, groups, clusters)], used
            if first is not None:
                made, own = [first.unsqueeze(1), *made], [(total > 0).unsqueeze(1), *used]
            return _front(torch.cat(made, dim=1), torch.cat(own, dim=1), keep)

        marked = is_dominant | groups.is_target
        places = _places(marked, seen.lengths, None if cls is None else total, keep)
        index = offered.gather(1, places.clamp(max=offered.shape[1] - 1))
        index = index.masked_fill(places == offered.shape[1], patches)
        beside = None if cls is not None else lambda values: merge(take_patches(values, offered))
        return VisionSelection(index=index, clusters=None, saliency=saliency, hidden=merge(hidden, cls), merge=beside)


class _Groups(NamedTuple):
    """Which patches make which contextual token, of n on offer.

    Attributes:
        targets: ``[C, c]`` int64, the patch at the head of each; n after a unit's last.
        is_target: ``[C, n]`` bool.
        joined: ``[C, n]`` int64, the contextual token that each other patch joins; c for those that join none.
    """

    targets: Tensor
    is_target: Tensor
    joined: Tensor


def _mean_keys(seen: VisionView) -> Tensor:
    """Return ``[C, m, e]``: the patches' keys averaged over heads, of length 1."""
    mean = seen.pooled(seen.patch_keys.detach().to(accumulator(seen.keys)).mean(1))
    return torch.nn.functional.normalize(mean, dim=-1)


def _marked(index: Tensor, size: int) -> Tensor:
    """Return ``[C, n]`` bool: the places in ``index`` [C, k], where n means none."""
    marks = torch.zeros((index.shape[0], size + 1), dtype=torch.bool, device=index.device)
    return marks.scatter(1, index, True)[:, :size]


def _contextual_groups(keys: Tensor, rest: Tensor, counts: Tensor, most: int) -> _Groups:
    """Return the targets among ``rest`` [C, n], and which of them each other patch there joins.

    Args:
        keys: ``[C, n, e]``, of length 1.
        rest: ``[C, n]`` bool, the patches that are not dominant.
        counts: ``[C]`` int64, contextual tokens of each unit.
        most: The most of them.
    """
    size = rest.shape[1]
    number = rest.cumsum(1) - 1
    step = torch.div(rest.sum(1), counts.clamp(min=1), rounding_mode="floor").clamp(min=1).unsqueeze(1)
    label = torch.div(number, step, rounding_mode="floor")
    is_target = rest & (number == label * step) & (label < counts.unsqueeze(1))
    label = label.masked_fill(~is_target, most)
    place = torch.arange(size, device=rest.device).expand_as(rest)
    targets = torch.full((rest.shape[0], most + 1), size, device=rest.device).scatter(1, label, place)[:, :most]
    # Compared as float32, where what is equal in exact arithmetic is equal, and ties go to the lower target.
    similarity = ops.product(keys, take_patches(keys, targets).mT).float()
    similarity = similarity.masked_fill((targets == size).unsqueeze(1), -math.inf)
    joined = similarity.argmax(2).masked_fill(is_target | ~rest, most)
    return _Groups(targets, is_target, joined)


def _contextual(hidden: Tensor, groups: _Groups, most: int) -> Tensor:
    """Return ``[C, c, d_v]``: each target's feature and the mean of those that joined it, added up in float32 or
    better.
    """
    wide = hidden.to(accumulator(hidden))
    return (take_patches(wide, groups.targets) + group_means(wide, groups.joined, most)).to(hidden.dtype)


def _front(features: Tensor, used: Tensor, keep: int) -> Tensor:
    """Map ``[C, n, d_v]`` to ``[C, keep, d_v]``: the ``used`` ones of each unit in order, then zeros."""
    order = places_of(used, keep)
    return take_patches(features, order).masked_fill(~used.gather(1, order).unsqueeze(2), 0)


def _places(used: Tensor, lengths: Tensor | None, counts: Tensor | None, keep: int) -> Tensor:
    """Return ``[C, keep]`` int64 ascending: the patches whose placeholders are taken, n after a unit's last.

    Args:
        used: ``[C, n]`` bool, the dominant patches and the targets.
        lengths: ``[C]`` int64 or None.
        counts: ``[C]`` int64, the tokens of units that have a CLS token, which takes the first place that is free; None
            of a tower without one.
        keep: The most tokens of a unit.
    """
    if counts is not None:
        free = valid_tokens(used, lengths) & ~used
        used = used | (free & (free.cumsum(1) == 1) & (counts > 0).unsqueeze(1))
    order = places_of(used, keep)
    return order.masked_fill(~used.gather(1, order), used.shape[1])
