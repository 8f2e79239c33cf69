"""The released code's behavior where it differs from the paper's text.

Plain torch functions, without operators of their own: they are here to compare with, not to be fast. Like the
operators they wait for no device, and compute in float32 or better; the released code clusters in the model's
half precision, where equal densities are common and results differ between devices.
"""

import math

import torch
from torch import Tensor

from vitcop_core.ops._groups import assign
from vitcop_core.ops._library import accumulator, row_counts, valid_tokens
from vitcop_core.ops._quotas import QuotaRule
from vitcop_core.ops.co_prune import group_means
from vitcop_core.ops.vic import center_labels, follow, nearby, pairwise_distances
from vitcop_core.tokens import Clusters, Selection

_DISTANCE_OFFSET = 1e-8


def official_vic(
    features: Tensor,
    positions: Tensor,
    num_centers: int,
    cutoff_distance: float | Tensor,
    spatial_threshold: float,
    *,
    lengths: Tensor | None = None,
    counts: Tensor | None = None,
) -> Clusters:
    """Cluster as the released code does.

    Densities count the token itself; a token of equal density counts as denser, so that two may be each other's parent;
    distances are ``sqrt(d^2 + 1e-8)``. A token takes the label of its parent, token 0 standing in for a missing one,
    again and again until nothing changes: every chain of parents that reaches a center is labeled to its end. A chain
    that runs into a cycle reaches none, and keeps -1. Of equal importance the lower index becomes a center.

    Args:
        features: ``[B, n, d]`` floating.
        positions: ``[B, n, 2]`` floating.
        num_centers: Centers of each row; the most where rows differ.
        cutoff_distance: d_c, or ``[B]`` floating.
        spatial_threshold: tau.
        lengths: ``[B]`` int64, valid tokens of each row; None where all n are.
        counts: ``[B]`` int64, centers of each row; None for ``num_centers``.
    """
    tokens, valid = features.shape[1], valid_tokens(features, lengths)
    place = torch.arange(tokens, device=features.device).expand_as(valid)
    pairs = valid.unsqueeze(2) & valid.unsqueeze(1)
    itself = torch.eye(tokens, dtype=torch.bool, device=features.device)
    distances = pairwise_distances(features.detach(), valid)
    distances = (distances.square() + _DISTANCE_OFFSET).sqrt().masked_fill(itself, 0)
    cutoff = (
        cutoff_distance.to(distances.dtype).view(-1, 1, 1) if isinstance(cutoff_distance, Tensor) else cutoff_distance
    )
    density = (-(distances / cutoff).square()).exp().masked_fill(~pairs, 0).sum(2).float()
    distances = distances.float()

    candidates = (density.unsqueeze(1) >= density.unsqueeze(2)) & nearby(positions, spatial_threshold) & pairs & ~itself
    # Where no distance is finite, the minimum's index is 0: token 0 is the parent of the parentless.
    distance, parent = distances.masked_fill(~candidates, math.inf).min(2)
    importance = (density * distance).masked_fill(~valid, -math.inf)
    centers = importance.argsort(dim=1, descending=True, stable=True)[:, :num_centers]
    unused = torch.arange(num_centers, device=place.device) >= row_counts(place, num_centers, counts, lengths)
    centers = centers.masked_fill(unused, tokens)

    labels = center_labels(centers, tokens)
    # Only centers are roots here. Within a cycle it does not matter where the steps end: no token of it has a label.
    roots = follow(torch.where(labels < 0, parent, place))
    labels = labels.gather(1, roots).masked_fill(~valid, -1)
    return Clusters(labels, centers, density, distance.masked_fill(~valid, 0), importance.masked_fill(~valid, 0))


def labeled_official_vic(
    features: Tensor,
    positions: Tensor,
    clusters: int,
    cutoff_distance: float | Tensor,
    spatial_threshold: float,
    *,
    lengths: Tensor | None,
    counts: Tensor | None,
) -> Clusters:
    """Cluster as :func:`official_vic`; the last of ``clusters`` is the one for tokens that it leaves without a label.

    Args:
        features: As there, like the rest.
        positions: ``[B, n, 2]`` floating.
        clusters: Centers of each row, and one more.
        cutoff_distance: d_c, or ``[B]`` floating.
        spatial_threshold: tau.
        lengths: ``[B]`` int64 or None.
        counts: ``[B]`` int64, ``clusters`` of each row; or None.
    """
    centers = None if counts is None else counts - 1
    thresholds = cutoff_distance, spatial_threshold
    found = official_vic(features, positions, clusters - 1, *thresholds, lengths=lengths, counts=centers)
    rest = clusters - 1 if centers is None else centers.unsqueeze(1)
    unlabeled = (found.labels < 0) & valid_tokens(features, lengths)
    return found._replace(labels=torch.where(unlabeled, rest, found.labels))


def head_mean_norm(keys: Tensor) -> Tensor:
    """Return the norm of the keys' mean over heads: ``[B, G, n, e]`` to ``[B, n]`` float32.

    It ranks tokens differently from Equation 4, which takes the norm over all heads.
    """
    norms: Tensor = torch.linalg.vector_norm(keys.detach().to(accumulator(keys)).mean(1), dim=-1)
    return norms.float()


def co_prune_variant(
    hidden: Tensor,
    labels: Tensor,
    key_norm: Tensor,
    budget: int,
    num_clusters: int,
    *,
    lengths: Tensor | None,
    counts: Tensor | None,
    quota_rule: QuotaRule,
    add_anchor: bool,
) -> Selection:
    """Co-prune as :func:`vitcop_core.ops.co_prune`, with other quotas or another merged token.

    Args:
        hidden: As there, and so the arguments up to ``counts``.
        labels: ``[B, n]`` int64.
        key_norm: ``[B, n]`` floating.
        budget: Width of the result.
        num_clusters: Upper bound on the clusters of a row.
        lengths: ``[B]`` int64 or None.
        counts: ``[B]`` int64 or None.
        quota_rule: Shares out the elites.
        add_anchor: Whether a merged token is the group's mean *plus* the hidden state at its place, twice the token for
            a group of one, as released.
    """
    place, is_merged, slot = assign(labels, key_norm.detach(), budget, num_clusters, lengths, counts, quota_rule)
    merged = group_means(hidden, slot, budget)
    if add_anchor:
        anchors = place.clamp(max=hidden.shape[1] - 1).unsqueeze(2).expand(-1, -1, hidden.shape[2])
        merged = torch.where(is_merged.unsqueeze(2), merged + hidden.gather(1, anchors), merged)
    return Selection(place, merged, is_merged, slot)
