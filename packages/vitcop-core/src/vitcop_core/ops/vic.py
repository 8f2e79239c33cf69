"""Visual Information Clustering (Algorithm 2): density peaks among tokens that are near in the image.

Where the algorithm as printed is undefined, this is what happens. Equal densities: the token with the lower index
counts as denser, so that "denser" is a total order and duplicates cannot point at each other. Infinite importance:
centers are ordered by importance, then density, then index. A token that is no center and has no denser token nearby
gets the label of the center nearest in feature space. NaN or infinite features give labels within range, the same ones
every time, and no meaning.
"""

import math

import torch
from torch import Tensor

from vitcop_core.checks import check_above_zero, check_floating, check_int, check_rows
from vitcop_core.ops._library import accumulator, register, row_counts, valid_tokens
from vitcop_core.ops.product import product
from vitcop_core.tokens import Clusters

# Slack on the squared spatial threshold: positions such as 3/10 are not exact, and a pair at the threshold is near.
_SPATIAL_SLACK = 1e-6

# One pair in so many is nearer than the cutoff distance that is found by itself.
_PAIRS = 50

# Squared distances below this share of the squared norms are rounding noise of the Gram matrix, and count as zero.
_GRAM_NOISE = 1e-13


def vic(
    features: Tensor,
    positions: Tensor,
    num_centers: int,
    *,
    cutoff_distance: float | Tensor = 8.0,
    spatial_threshold: float = 0.6,
    lengths: Tensor | None = None,
    counts: Tensor | None = None,
) -> Clusters:
    """Cluster the tokens of each row by density peaks.

    Density ``rho_i = sum_{j != i} exp(-(d_ij / d_c)^2)`` (Equation 2); distance ``delta_i = min d_ij`` over denser j
    within the spatial threshold (Equation 3); importance ``gamma_i = rho_i * delta_i``. The tokens of largest
    importance are centers; every other token takes the label of its nearest denser neighbor.

    Args:
        features: ``[B, n, d]`` floating.
        positions: ``[B, n, 2]`` floating, (row / rows, column / columns).
        num_centers: Centers of each row, from 1 to n.
        cutoff_distance: d_c, on the scale of the features; or ``[B]`` floating, one for each row, as
            :func:`auto_cutoff` finds them.
        spatial_threshold: tau, inclusive, on the scale of the positions.
        lengths: ``[B]`` int64, valid tokens of each row; None where all n are.
        counts: ``[B]`` int64, centers of each row, at most ``num_centers``; None for ``num_centers``. A row never has
            more centers than tokens.

    Returns:
        Labels, centers, density, distance and importance. The center with label k is ``centers[:, k]``. No gradient
        flows through them.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, a device, ``num_centers`` or a threshold does not fit.
    """
    given = num_centers, (cutoff_distance, spatial_threshold)
    how, cutoffs = _check(features, positions, 2, *given, lengths, counts)
    found = torch.ops.vitcop.vic(features.detach(), positions.detach(), *how, lengths, counts, cutoffs)
    return Clusters(*found)


def vic_in_time(
    features: Tensor,
    positions: Tensor,
    num_centers: int,
    *,
    cutoff_distance: float | Tensor = 8.0,
    spatial_threshold: float = 0.6,
    lengths: Tensor | None = None,
    counts: Tensor | None = None,
) -> Clusters:
    """Cluster as :func:`vic`, among tokens of several frames: near in place *and* time.

    It is no operator with kernels of its own: the reference runs on every device, and takes memory for ``[B, n, n]``
    distances.

    Args:
        features: ``[B, n, d]`` floating.
        positions: ``[B, n, 3]`` floating, (row / rows, column / columns, frame / frames).
        num_centers: As there, like all that follow.
        cutoff_distance: d_c, or ``[B]`` floating.
        spatial_threshold: tau, on the distance in all three coordinates.
        lengths: ``[B]`` int64 or None.
        counts: ``[B]`` int64 or None.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, a device, ``num_centers`` or a threshold does not fit.
    """
    given = num_centers, (cutoff_distance, spatial_threshold)
    how, cutoffs = _check(features, positions, 3, *given, lengths, counts)
    return Clusters(*_reference(features.detach(), positions.detach(), *how, lengths, counts, cutoffs))


def _check(
    features: Tensor,
    positions: Tensor,
    coordinates: int,
    num_centers: int,
    thresholds: tuple[float | Tensor, float],
    lengths: Tensor | None,
    counts: Tensor | None,
) -> tuple[tuple[int, float, float], Tensor | None]:
    """Raise for arguments that do not fit; return the centers, and the thresholds as floats; and the rows' cutoffs."""
    check_floating("features", features, ("B", "n", "d"))
    batch, tokens, _ = features.shape
    check_floating("positions", positions, (batch, tokens, coordinates), like=features)
    num_centers = check_int("num_centers", num_centers, 1, tokens)
    cutoff, cutoffs = thresholds[0], None
    if isinstance(cutoff, Tensor):
        cutoffs, cutoff = check_floating("cutoff_distance", cutoff, (batch,), like=features).detach(), 1.0
    check_above_zero("cutoff_distance", cutoff)
    check_above_zero("spatial_threshold", thresholds[1])
    check_rows(features, lengths=lengths, counts=counts)
    return (num_centers, float(cutoff), float(thresholds[1])), cutoffs


def auto_cutoff(features: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """Return the distance below which 2 % of the pairs of a row's tokens lie, as a cutoff distance of its clustering.

    The rule of Rodriguez and Laio, "Clustering by fast search and find of density peaks", Science 2014: of P distances
    in ascending order the one of number P / 50, rounded to the nearest, and the first where that is 0. It is no
    operator with kernels of its own: the reference runs on every device, and takes memory for ``[B, n, n]`` distances.

    Args:
        features: ``[B, n, d]`` floating, as given to :func:`vic`.
        lengths: ``[B]`` int64, valid tokens of each row; None where all n are.

    Returns:
        ``[B]`` float32, positive: where so many pairs are duplicates, the smallest normal number, at which duplicates
        alone add to each other's density; 1 for a row without a pair. No gradient flows through it.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape or a device does not fit.
    """
    check_floating("features", features, ("B", "n", "d"))
    check_rows(features, lengths=lengths)
    batch, tokens, _ = features.shape
    most = _share_of(tokens * (tokens - 1) // 2)
    if tokens < 2:
        return features.new_ones(batch, dtype=torch.float32)
    valid = valid_tokens(features, lengths)
    rows, columns = torch.triu_indices(tokens, tokens, offset=1, device=features.device)
    distances = pairwise_distances(features.detach(), valid)[:, rows, columns].float()
    distances = distances.masked_fill(~(valid[:, rows] & valid[:, columns]), math.inf)
    # Not kthvalue(): with deterministic algorithms asked for, CUDA refuses it.
    smallest = distances.topk(most, dim=1, largest=False).values
    count = valid.sum(1, keepdim=True)
    pairs = count * (count - 1) // 2
    found = smallest.gather(1, (pairs + _PAIRS // 2).div(_PAIRS, rounding_mode="floor").clamp(min=1) - 1)
    found = found.clamp(min=torch.finfo(torch.float32).tiny).masked_fill(pairs == 0, 1.0)
    return found.squeeze(1)


def _share_of(pairs: int) -> int:
    """Return how many of the pairs are nearer than the cutoff distance, itself included."""
    return max(1, (pairs + _PAIRS // 2) // _PAIRS)


def pairwise_distances(features: Tensor, valid: Tensor) -> Tensor:
    """Return the Euclidean distances between the tokens of each row.

    Args:
        features: ``[B, n, d]``.
        valid: ``[B, n]`` bool; other tokens are read as zeros.

    Returns:
        ``[B, n, n]`` in the accumulating dtype: symmetric, zero on the diagonal and between duplicates.
    """
    wide = features.to(accumulator(features)).masked_fill(~valid.unsqueeze(2), 0)
    if wide.dtype is torch.float32:
        # Without float64 the Gram matrix would lose small distances between large vectors.
        return torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    # Distances do not change when the mean is taken off, and the Gram matrix cancels less.
    wide = wide - wide.sum(1, keepdim=True) / valid.sum(1).clamp(min=1).view(-1, 1, 1)
    gram = product(wide, wide.mT)
    squares = gram.diagonal(dim1=1, dim2=2)
    norms = squares.unsqueeze(2) + squares.unsqueeze(1)
    squared = norms - (gram + gram.mT)
    return squared.masked_fill(squared <= _GRAM_NOISE * norms, 0).sqrt()


def nearby(positions: Tensor, spatial_threshold: float) -> Tensor:
    """Return ``[B, n, n]`` bool: which pairs of ``[B, n, p]`` positions are at most the threshold apart."""
    offsets = positions.float().unsqueeze(2) - positions.float().unsqueeze(1)
    # A product: a power raises where a float overflows.
    return offsets.square().sum(-1) <= spatial_threshold * spatial_threshold + _SPATIAL_SLACK


def nearest_center(distances: Tensor, centers: Tensor) -> Tensor:
    """Label of the center nearest to each token in feature space, the lower label on ties.

    Args:
        distances: ``[B, n, n]``.
        centers: ``[B, c]`` int64, padded with n.

    Returns:
        ``[B, n]`` int64.
    """
    tokens = distances.shape[1]
    columns = centers.clamp(max=tokens - 1).unsqueeze(1).expand(-1, tokens, -1)
    to_centers = distances.gather(2, columns).masked_fill((centers == tokens).unsqueeze(1), math.inf)
    return to_centers.argmin(2)


def follow(parents: Tensor) -> Tensor:
    """Return the root that each token reaches by going from parent to parent; a root is its own parent.

    Doubling the step in each round reaches the end of the longest possible chain in log2(n) rounds.
    """
    for _ in range(max(parents.shape[1] - 1, 1).bit_length()):
        parents = parents.gather(1, parents)
    return parents


def center_labels(centers: Tensor, tokens: int) -> Tensor:
    """Return ``[B, n]`` int64: the label of each token that is one of the ``[B, c]`` centers, -1 for the others."""
    labels = centers.new_full((centers.shape[0], tokens + 1), -1)
    names = torch.arange(centers.shape[1], device=centers.device).expand_as(centers)
    return labels.scatter(1, centers, names)[:, :tokens]


def _reference(
    features: Tensor,
    positions: Tensor,
    num_centers: int,
    cutoff_distance: float = 8.0,
    spatial_threshold: float = 0.6,
    *rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lengths, counts, cutoffs = (*rows, *(None,) * 3)[:3]
    tokens = features.shape[1]
    valid = valid_tokens(features, lengths)
    place = torch.arange(tokens, device=features.device).expand_as(valid)
    distances = pairwise_distances(features, valid)
    others = (valid.unsqueeze(2) & valid.unsqueeze(1)).tril(-1)
    others = others | others.mT
    cutoff = cutoff_distance if cutoffs is None else cutoffs.to(distances.dtype).view(-1, 1, 1)
    density = (-(distances / cutoff).square()).exp().masked_fill(~others, 0).sum(2).float()
    distances = distances.float()

    order = density.masked_fill(~valid, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, place)
    candidates = (rank.unsqueeze(1) < rank.unsqueeze(2)) & others & nearby(positions, spatial_threshold)
    distance, parent = distances.masked_fill(~candidates, math.inf).min(2)
    parentless = distance.isinf()
    # Not density times distance there: a token infinitely far from all others has density 0, and 0 * inf is NaN.
    importance = (density * distance).masked_fill(parentless, math.inf)

    by_importance = importance.masked_fill(~valid, -math.inf).gather(1, order)
    best = by_importance.argsort(dim=1, descending=True, stable=True)[:, :num_centers]
    unused = torch.arange(num_centers, device=best.device) >= row_counts(best, num_centers, counts, lengths)
    centers = order.gather(1, best).masked_fill(unused, tokens)

    labels = center_labels(centers, tokens)
    labels = torch.where((labels < 0) & parentless, nearest_center(distances, centers), labels)
    roots = follow(torch.where(labels < 0, parent, place))
    labels = labels.gather(1, roots).masked_fill(~valid, -1)
    padding = ~valid
    return labels, centers, density, distance.masked_fill(padding, 0), importance.masked_fill(padding, 0)


def _fake(
    features: Tensor,
    positions: Tensor,
    num_centers: int,
    cutoff_distance: float = 8.0,
    spatial_threshold: float = 0.6,
    *rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, _ = features.shape
    labels = features.new_empty((batch, tokens), dtype=torch.int64)
    centers = features.new_empty((batch, num_centers), dtype=torch.int64)
    density, distance, importance = (features.new_empty((batch, tokens), dtype=torch.float32) for _ in range(3))
    return labels, centers, density, distance, importance


register(
    "vic(Tensor features, Tensor positions, int num_centers, float cutoff_distance=8.0, "
    "float spatial_threshold=0.6, Tensor? lengths=None, Tensor? counts=None, Tensor? cutoffs=None) "
    "-> (Tensor labels, Tensor centers, Tensor density, Tensor distance, Tensor importance)",
    _reference,
    _fake,
)
