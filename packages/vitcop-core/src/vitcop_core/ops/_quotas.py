"""How many tokens of each cluster stay themselves: integer arithmetic on ``[B, c]`` cluster sizes."""

from typing import Protocol

import torch
from torch import Tensor


class QuotaRule(Protocol):
    """Shares out elites among clusters."""

    def __call__(self, sizes: Tensor, elites: Tensor, norms: Tensor) -> Tensor:
        """Return the quota of each cluster.

        Args:
            sizes: ``[B, c]`` int64, tokens of each cluster; 0 for a label that is not used.
            elites: ``[B, 1]`` int64, how many to share out: from 0 to the tokens less the clusters.
            norms: ``[B, c]`` floating, the sum of the key norms of each cluster.

        Returns:
            ``[B, c]`` int64 that sum to ``elites``; each is less than its cluster's size.
        """
        ...


def top_up_quotas(sizes: Tensor, elites: Tensor, norms: Tensor) -> Tensor:
    """Apply Equation 5, and hand out what its floors leave over one at a time.

    The left-over goes by the largest remainder, the lower label on ties, skipping clusters of which only one token is
    left to merge, in as many passes as it takes. Follows :class:`QuotaRule`; the norms play no part.
    """
    tokens = sizes.sum(1, keepdim=True).clamp(min=1)
    shares = sizes * elites
    quotas = shares.div(tokens, rounding_mode="floor")
    left = elites - quotas.sum(1, keepdim=True)
    room = (sizes - 1 - quotas).clamp(min=0)
    passes, left = _full_passes(room, left)
    order = shares.remainder(tokens).argsort(dim=1, descending=True, stable=True)
    return quotas + torch.minimum(room, passes) + _first_open(order, room > passes, left)


def _full_passes(room: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many passes over the clusters can be completed, and what is left after them.

    A pass gives one to every cluster with room. With rooms in ascending order, filling up to room i takes their sum so
    far plus room i for each cluster from i on.

    Args:
        room: ``[B, c]`` int64, what each cluster can still take.
        left: ``[B, 1]`` int64, at most the sum of ``room``.
    """
    clusters = room.shape[1]
    ascending = room.sort(dim=1).values
    filled = torch.nn.functional.pad(ascending.cumsum(1), (1, 0))
    growing = clusters - torch.arange(clusters, device=room.device)
    is_full = filled[:, :-1] + ascending * growing <= left
    full = is_full.sum(1, keepdim=True)
    passes = (left - filled.gather(1, full)).div((clusters - full).clamp(min=1), rounding_mode="floor")
    passes = torch.where(full == clusters, ascending[:, -1:], passes)
    return passes, left - torch.minimum(room, passes).sum(1, keepdim=True)


def _first_open(order: Tensor, is_open: Tensor, how_many: Tensor) -> Tensor:
    """Return ``[B, c]`` int64, 1 for the first ``how_many`` clusters in ``order`` that are open."""
    in_order = is_open.gather(1, order)
    chosen = in_order & (in_order.cumsum(1) <= how_many)
    return torch.zeros_like(order).scatter(1, order, chosen.to(order.dtype))


def rounded_quotas(sizes: Tensor, elites: Tensor, norms: Tensor) -> Tensor:
    """Return the released code's quotas: each cluster's share of the tokens beyond its first, rounded half to even.

    What rounding gave too little goes, one each, to the clusters with the smallest sums of norms; what it gave too much
    is taken back from those with the largest. One pass is always enough: rounding errs by at most a half a cluster.
    Follows :class:`QuotaRule`.
    """
    spare = (sizes - 1).clamp(min=0)
    total = spare.sum(1, keepdim=True).clamp(min=1)
    shares = spare * elites
    quotas = shares.div(total, rounding_mode="floor")
    twice = 2 * shares.remainder(total)
    quotas = quotas + ((twice > total) | ((twice == total) & (quotas % 2 == 1))).to(quotas.dtype)
    missing = elites - quotas.sum(1, keepdim=True)
    more = _first_open(norms.argsort(dim=1, stable=True), quotas < spare, missing)
    less = _first_open(norms.argsort(dim=1, descending=True, stable=True), quotas > 0, -missing)
    return quotas + more - less
