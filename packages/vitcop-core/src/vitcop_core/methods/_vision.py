"""Patches of units that may use different parts of their grid."""

from torch import Tensor

from vitcop_core import ops
from vitcop_core.tokens import VisionView


def top_patches(seen: VisionView, saliency: Tensor, keep: int, keeps: Tensor | None) -> Tensor:
    """Return the most salient of each unit's eligible patches.

    Args:
        seen: The units.
        saliency: ``[C, m]``, the larger the more important; ties go to the lower index.
        keep: Width of the result.
        keeps: ``[C]`` int64, patches of each unit; None where all keep ``keep``.

    Returns:
        ``[C, keep]`` int64 ascending, m after a unit's last.
    """
    if seen.eligible is None:
        return ops.top_tokens(saliency, keep, lengths=seen.lengths, counts=keeps)
    ranked = saliency.gather(1, seen.eligible)
    chosen = ops.top_tokens(ranked, keep, lengths=seen.lengths, counts=keeps)
    index = seen.eligible.gather(1, chosen.clamp(max=ranked.shape[1] - 1))
    return index.masked_fill(chosen == ranked.shape[1], saliency.shape[1])


def take_patches(patches: Tensor, index: Tensor) -> Tensor:
    """Return ``[C, m, d]`` at ``[C, k]`` to ``[C, k, d]``; an index of m, after a unit's last, takes any patch."""
    index = index.clamp(max=patches.shape[1] - 1)
    return patches.gather(1, index.unsqueeze(2).expand(-1, -1, patches.shape[2]))
