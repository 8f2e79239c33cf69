"""DivPrune: tokens as unlike each other as possible, chosen among the projected features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcop_core.checks import MAX_LAYERS, check_int
from vitcop_core.methods._budget import BudgetedMethod, share_out
from vitcop_core.methods._likeness import Likeness
from vitcop_core.methods._vision import chosen_patches, offered_patches
from vitcop_core.methods.base import unit_counts
from vitcop_core.ops._library import row_counts, valid_tokens
from vitcop_core.plan import Plan, VisionCut, identity_plan
from vitcop_core.tokens import VisionSelection, VisionView


@dataclass(frozen=True)
class DivPrune(BudgetedMethod):
    """Settings of DivPrune. Give exactly one of ``retained_tokens`` and ``retention_ratio``.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025. It looks for
    the tokens S of an image that maximize ``min d(i, j)`` over the pairs of S, where ``d(i, j) = 1 - cos(f_i, f_j)`` of
    projected features (the max-min diversity problem), and takes the greedy answer: first the token whose distance to
    the nearest other one is largest, then again and again the one whose distance to the nearest chosen one is largest.
    Attention is not looked at, and any vision tower will do. The projector runs on all tokens.

    The authors' code (``DivPrune`` in ``llava_arch.py`` of github.com/vbdi/divprune) does the same for one image in a
    batch of one, and differs in three points. It chooses among all tokens of an image in tiles together, newlines
    included; here each tile or frame keeps its share, as with VisionZip. It rounds the number of tokens, and here a
    budget is not exceeded. It compares distances in the model's dtype; here cosines are computed in float64 and rounded
    to 24 bits, and ties go to the lower index.

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or not exactly one of the two is given.
    """

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget()

    @property
    def cuts_depend_on_question(self) -> bool:
        """Never: only the image is looked at."""
        return False

    @property
    def needs_projected(self) -> bool:
        """Always."""
        return True

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the cut of one sample; see :meth:`Method.plan`.

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
        return Plan(num_layers, units, VisionCut(share_out(self, units, images, budget), (0,) * len(units)), ())

    def cut_vision(
        self,
        seen: VisionView,
        keep: int,
        clusters: int,
        keeps: Tensor | None = None,
        cluster_counts: Tensor | None = None,
    ) -> VisionSelection:
        """Keep the tokens of each unit that are most unlike each other; see :meth:`Method.cut_vision`.

        The saliency counts down from the token that was chosen first, and is 0 of those that were not chosen.

        Args:
            seen: The units, with projected features.
            keep: Tokens of each.
            clusters: Without meaning here.
            keeps: ``[C]`` int64, tokens of each unit, which may be 0; None where all keep ``keep``.
            cluster_counts: Without meaning here.
        """
        features = offered_patches(seen)
        units, size = features.shape[:2]
        chosen = _farthest(features, check_int("keep", keep, 1, size), seen.lengths)
        step = torch.arange(keep, device=chosen.device)
        chosen = chosen.masked_fill(step >= row_counts(features, keep, keeps, seen.lengths), size)
        patches = seen.hidden.shape[1]
        at = chosen
        if seen.eligible is not None:
            at = seen.eligible.gather(1, chosen.clamp(max=size - 1)).masked_fill(chosen == size, patches)
        rank = (keep - step).float().expand(units, -1)
        saliency = torch.zeros((units, patches + 1), dtype=torch.float32, device=rank.device).scatter(1, at, rank)
        return VisionSelection(chosen_patches(seen, chosen), clusters=None, saliency=saliency[:, :patches])


def _farthest(features: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """Return ``[C, count]`` int64: tokens in the order in which they are chosen; arbitrary past a unit's own number.

    Fewer of them are the first of these, so units may keep different numbers.

    Args:
        features: ``[C, n, d]``.
        count: From 1 to n.
        lengths: ``[C]`` int64, the tokens of each unit; None where all have n.
    """
    likeness, valid = Likeness(features), valid_tokens(features, lengths)
    # The largest cosine is that of the least distance. Infinite where a token is chosen already, or is none.
    alike = likeness.nearest(valid).masked_fill(~valid, torch.inf)
    chosen = [alike.argmin(1, keepdim=True)]
    alike = torch.full_like(alike, -torch.inf).masked_fill(~valid, torch.inf)
    for _ in range(count - 1):
        alike = torch.maximum(alike, likeness.to_all(chosen[-1]))
        chosen.append(alike.argmin(1, keepdim=True))
    return torch.cat(chosen, dim=1)
