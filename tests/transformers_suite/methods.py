"""What the models of transformers' tests are pruned with, by the name of the mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitcop_core import DecoderCut, Method, Plan, Selection, VisionCut, VisionSelection, ViTCoP
from vitcop_core.methods.base import unit_counts

CUTS: Counter[str] = Counter()
"""How often each kind of cut ran in this process, and in how many tests: what shows that the pruned mode did prune."""


@dataclass(frozen=True)
class ShallowViTCoP(ViTCoP):
    """ViTCoP without its deep cut, in counts that fit models of two layers and images of four patches.

    Stage I keeps half of each unit and Stage II half of what enters, at least one token of each unit and image. The
    budget, which three stages would be needed for, is not looked at.
    """

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Cuts before the language model and before its second layer; see :meth:`Method.plan`."""
        units, images = unit_counts(visual_tokens, images)
        keep = tuple(max(1, unit // 2) for unit in units)
        clusters = tuple(max(1, kept // 2) for kept in keep)
        entry = sum(keep)
        shallow = max(images, entry // 2)
        cuts = (DecoderCut(1, shallow, "co_prune"),) if shallow < entry else ()
        return Plan(num_layers, units, VisionCut(keep, clusters), cuts)

    def cut_vision(self, *args: Any, **kwargs: Any) -> VisionSelection:
        """Counts the cut; see :meth:`Method.cut_vision`."""
        CUTS["vision"] += 1
        return super().cut_vision(*args, **kwargs)

    def cut_decoder(self, *args: Any, **kwargs: Any) -> Selection:
        """Counts the cut; see :meth:`Method.cut_decoder`."""
        CUTS["decoder"] += 1
        return super().cut_decoder(*args, **kwargs)


METHODS: dict[str, Method | None] = {
    "unpruned": None,
    "keep-all": ViTCoP(retention_ratio=1),
    "pruned": ShallowViTCoP(retention_ratio=0.5),
}
"""None leaves the models as they are: what the other modes are compared with."""
