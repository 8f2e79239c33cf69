"""Patches of units that may use different parts of their grid."""

from typing import Literal

from torch import Tensor

from vitcop_core import ops
from vitcop_core.tokens import VisionView

#: d_c of the paper, on the scale of CLIP ViT-L's keys.
PAPER_CUTOFF = 8.0

#: What the patches of a unit can be ranked by: see :func:`patch_saliency`.
VisionSaliency = Literal["auto", "cls", "received"]
VISION_SALIENCIES: tuple[VisionSaliency, ...] = ("auto", "cls", "received")


def on_tower(
    cutoff_distance: float | Literal["auto"] | None, vision_saliency: VisionSaliency, *, has_cls: bool
) -> tuple[float | Literal["auto"], VisionSaliency]:
    """Return a cutoff distance and a saliency with what follows from the vision tower filled in.

    Args:
        cutoff_distance: As given to a method.
        vision_saliency: Likewise.
        has_cls: Whether the tower has a CLS token.
    """
    cutoff = cutoff_distance
    if cutoff is None:
        cutoff = PAPER_CUTOFF if has_cls else "auto"
    elif cutoff != "auto":
        cutoff = float(cutoff)
    if vision_saliency == "auto":
        vision_saliency = "cls" if has_cls else "received"
    return cutoff, vision_saliency


def patch_saliency(seen: VisionView, choice: str) -> Tensor:
    """Return what each token of a unit is ranked by, the larger the more important.

    Args:
        seen: The units.
        choice: ``"cls"`` for the CLS token's attention, summed over heads (:func:`vitcop_core.ops.cls_saliency`);
            ``"received"`` for the attention that a patch receives from all tokens of its unit, mean over heads and
            tokens (:func:`vitcop_core.ops.received_attention`); ``"auto"`` for the first where the tower has a CLS
            token, and the second where it has none. The softmax runs over all tokens of the tower, as it does there.

    Returns:
        ``[C, m]`` float32, averaged over the patches of each token where patches are pooled.

    Raises:
        ValueError: CLS is asked for, and the tower has none.
    """
    query = seen.query_cls
    if choice == "cls" and query is None:
        raise ValueError("query_cls must be given for vision_saliency='cls', got None; use 'auto' or 'received'")
    if query is not None and choice != "received":
        paid = ops.cls_saliency(query, seen.keys, seen.scale)
    else:
        keys = seen.keys if seen.attended_keys is None else seen.attended_keys
        paid = ops.received_attention(seen.queries(), keys, seen.scale, lengths=seen.sizes)
    return seen.pooled(paid[:, seen.leading :])


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


def offered_patches(seen: VisionView) -> Tensor:
    """Return the features of what each unit may choose from, ``[C, n, d_v]``, without their gradients."""
    hidden = seen.hidden.detach()
    return hidden if seen.eligible is None else take_patches(hidden, seen.eligible)


def chosen_patches(seen: VisionView, places: Tensor) -> Tensor:
    """Return which patches were chosen, in order.

    Args:
        seen: The units.
        places: ``[C, k]`` int64, places among the n that each unit may choose from, in any order; n for none.

    Returns:
        ``[C, k]`` int64 ascending, among the m patches; m after a unit's last.
    """
    places = places.sort(dim=1).values
    if seen.eligible is None:
        return places
    size = seen.eligible.shape[1]
    return seen.eligible.gather(1, places.clamp(max=size - 1)).masked_fill(places == size, seen.hidden.shape[1])
