"""What is known of an image ahead of everything, and what Stage I kept of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcop_core import Plan
from vitcop_llava.families.tiling import Tiling

DROPPED, NEWLINE = -1, -2
"""Codes of placeholders that stand for no visual token of the pruned model: dropped, and newlines that stay."""


@dataclass(frozen=True)
class PlannedImage:
    """What is known of an image from its size alone, or of a clip from its number of frames.

    Attributes:
        tiling: How it lies in units.
        plan: What is done with it where it is alone in its prompt.
        newlines: Newline tokens that stay.
    """

    tiling: Tiling
    plan: Plan
    newlines: int = 0

    @property
    def lost(self) -> int:
        """Placeholders that do not enter the language model."""
        return self.tiling.placeholders - self.plan.entry_tokens - self.newlines


@dataclass(frozen=True, eq=False)
class Kept:
    """What Stage I kept of images that are one unit each, and alike.

    Attributes:
        index: ``[images, k]`` int64 ascending, the patches of each.
        labels: ``[images, k]`` int64, their clusters, counted from 0 in each image; None where nothing was clustered.
        clusters: Of each image.
        patches: Likewise.
    """

    index: Tensor
    labels: Tensor | None
    clusters: int
    patches: int

    def codes(self) -> Tensor:
        """Return ``[images * patches]`` int64: what became of each, as in `EncodedImages`."""
        number = torch.arange(self.index.shape[0], device=self.index.device)[:, None]
        places = (self.index + self.patches * number).flatten()
        values = torch.zeros_like(self.index) if self.labels is None else self.labels + self.clusters * number
        size = (self.index.shape[0] * self.patches,)
        whole = torch.full(size, DROPPED, dtype=torch.int64, device=places.device)
        return whole.scatter(0, places, values.flatten())
