"""Whether the clustering's cutoff distance fits a model. Not for the prefill: reading the answer awaits the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from vitcop_core.checks import check_floating, check_positive
from vitcop_core.ops.vic import pairwise_distances

#: Outside this range of :func:`cutoff_scale` nearly all densities are equal, to all tokens or to none.
CUTOFF_SCALE_RANGE = (0.3, 4.0)


class Diagnosis(NamedTuple):
    """What a method found out about its settings on a model.

    Attributes:
        ratio: Of a distance that it saw to the distance that it is set to: 1 is a perfect fit.
        warning: What the user should know about that, and do; None where all is well.
    """

    ratio: float
    warning: str | None


def cutoff_scale(features: Tensor, cutoff_distance: float = 8.0) -> Tensor:
    """Return the median distance between two tokens of a row, in units of the cutoff distance.

    The paper's cutoff of 8 presumes features on the scale of LLaVA-1.5's vision keys.

    Args:
        features: ``[B, n, d]`` floating, n at least 2, as given to :func:`vitcop_core.ops.vic`.
        cutoff_distance: d_c.

    Returns:
        ``[B]`` float32.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: The shape or the distance does not fit.
    """
    check_floating("features", features, ("B", "n", "d"))
    scale = float(check_positive("cutoff_distance", cutoff_distance))
    tokens = features.shape[1]
    valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    rows, columns = torch.triu_indices(tokens, tokens, offset=1, device=features.device)
    distances = pairwise_distances(features.detach(), valid)[:, rows, columns]
    # Not median(): with deterministic algorithms asked for, CUDA refuses it.
    middle = distances.sort(dim=1).values[:, (distances.shape[1] - 1) // 2]
    return (middle / scale).float()


def diagnose_cutoff(features: Tensor, cutoff_distance: float) -> Diagnosis:
    """Return how a cutoff distance fits the scale of features.

    Args:
        features: ``[n, d]`` floating, n at least 2.
        cutoff_distance: d_c.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: The shape or the distance does not fit.
    """
    ratio, (low, high) = cutoff_scale(features[None], cutoff_distance).item(), CUTOFF_SCALE_RANGE
    if low <= ratio <= high:
        return Diagnosis(ratio, None)
    return Diagnosis(
        ratio,
        f"the median distance between clustered features is {ratio:.2g} times cutoff_distance={cutoff_distance:g}, "
        f"outside {low:g} to {high:g}: densities then say little; try a cutoff_distance near "
        f"{ratio * cutoff_distance:.3g}",
    )
