"""Which token goes into which output of Algorithm 3: integers only, nothing merged yet."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vitcop_core.ops._library import accumulator, row_counts, valid_tokens
from vitcop_core.ops._quotas import QuotaRule


class Assignment(NamedTuple):
    """Outputs of a co-pruning, by token and by output.

    Attributes:
        place: ``[B, budget]`` int64 ascending, the place of each output among the tokens; n where there is none.
        is_merged: ``[B, budget]`` bool, whether the output stands for a group.
        slot: ``[B, n]`` int64, the output that each token goes into; ``budget`` in padding.
    """

    place: Tensor
    is_merged: Tensor
    slot: Tensor


def assign(
    labels: Tensor,
    key_norm: Tensor,
    budget: int,
    num_clusters: int,
    lengths: Tensor | None,
    counts: Tensor | None,
    quota_rule: QuotaRule,
) -> Assignment:
    """Choose elites and group the rest; see :func:`vitcop_core.ops.co_prune` for the arguments.

    Three cases, by row. Budget for every token: all are elites. More clusters than budget: no elites, and the budget's
    clusters of smallest norm, less one, stay groups while all others become one more. Otherwise: elites by quota.
    """
    budgets = row_counts(labels, budget, counts, None)
    # A row that may keep nothing is a row without tokens.
    valid = valid_tokens(labels, lengths) & (budgets > 0)
    tokens = valid.sum(1, keepdim=True)
    # Padding goes into a bucket of its own behind the last cluster.
    labels = labels.clamp(0, num_clusters - 1).masked_fill(~valid, num_clusters)
    norms = key_norm.float()
    norms = norms.masked_fill(norms.isnan(), math.inf)

    sizes = _count(labels, num_clusters)
    sums = _cluster_sums(norms, labels, num_clusters).masked_fill(sizes == 0, math.inf)
    used = (sizes > 0).sum(1, keepdim=True)
    keeps_all = budgets >= tokens
    too_many = used > budgets
    quotas = quota_rule(sizes, torch.minimum(budgets, tokens).sub(used).clamp(min=0), sums)
    quotas = torch.where(keeps_all, sizes, quotas.masked_fill(too_many, 0))

    is_elite = _smallest_of_each(norms, labels, sizes, quotas)
    groups = torch.where(too_many, _pooled(sums, budgets), torch.arange(num_clusters, device=labels.device))
    groups = torch.nn.functional.pad(groups, (0, 1), value=num_clusters).gather(1, labels)
    groups = groups.masked_fill(is_elite, num_clusters)
    return _outputs(groups, is_elite, budget, num_clusters)


def _count(labels: Tensor, num_clusters: int) -> Tensor:
    """Return ``[B, c]`` int64: how many tokens have each label below ``num_clusters``."""
    counts = labels.new_zeros((labels.shape[0], num_clusters + 1))
    return counts.scatter_add(1, labels, torch.ones_like(labels))[:, :num_clusters]


def _starts(sizes: Tensor) -> Tensor:
    """Return ``[B, c + 1]`` int64: where each group starts when tokens are sorted by group, and where the last ends."""
    return torch.nn.functional.pad(sizes.cumsum(1), (1, 0))


def _cluster_sums(norms: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Return ``[B, c]`` float32: the sum of each cluster's norms, finite so that an unused label can rank last."""
    wide = norms.to(accumulator(norms))
    sums = wide.new_zeros((norms.shape[0], num_clusters + 1)).scatter_add(1, labels, wide)[:, :num_clusters].float()
    # Infinities of both signs make NaN, which ranks last as a norm does.
    return sums.masked_fill(sums.isnan(), math.inf).clamp(max=torch.finfo(torch.float32).max)


def _smallest_of_each(norms: Tensor, labels: Tensor, sizes: Tensor, quotas: Tensor) -> Tensor:
    """Return ``[B, n]`` bool: the tokens among the ``quotas`` smallest norms of their cluster, lower index on ties."""
    by_norm = norms.argsort(dim=1, stable=True)
    order = by_norm.gather(1, labels.gather(1, by_norm).argsort(dim=1, stable=True))
    cluster = labels.gather(1, order)
    place = torch.arange(labels.shape[1], device=labels.device) - _starts(sizes).gather(1, cluster)
    chosen = place < torch.nn.functional.pad(quotas, (0, 1)).gather(1, cluster)
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def _pooled(sums: Tensor, budgets: Tensor) -> Tensor:
    """Return ``[B, c]`` int64: the group of each cluster where there are more clusters than budget."""
    order = sums.argsort(dim=1, stable=True)
    place = torch.arange(sums.shape[1], device=sums.device).expand_as(order)
    return torch.minimum(torch.empty_like(order).scatter(1, order, place), budgets - 1)


def _outputs(groups: Tensor, is_elite: Tensor, budget: int, num_groups: int) -> Assignment:
    """Place the outputs: an elite where it is, a group at the upper median of its tokens.

    Args:
        groups: ``[B, n]`` int64, the group of each token; ``num_groups`` for elites and padding.
        is_elite: ``[B, n]`` bool.
        budget: Width of the result.
        num_groups: Groups that there may be.
    """
    batch, tokens = groups.shape
    sizes = _count(groups, num_groups)
    middle = (_starts(sizes)[:, :-1] + sizes // 2).clamp(max=tokens - 1)
    # A group without tokens has no anchor: its write goes to a column that is cut off.
    anchors = groups.argsort(dim=1, stable=True).gather(1, middle).masked_fill(sizes == 0, tokens)
    stands = torch.nn.functional.pad(is_elite, (0, 1)).scatter(1, anchors, True)
    slots = (stands.cumsum(1) - 1).masked_fill(~stands, budget)
    is_anchor = torch.zeros_like(stands).scatter(1, anchors, True)[:, :tokens]

    # The last column stands for elites and padding, whose own slot is right already.
    own = slots[:, :tokens]
    of_group = torch.nn.functional.pad(slots.gather(1, anchors), (0, 1), value=budget).gather(1, groups)
    slot = torch.where(is_elite, own, of_group)

    tokens_in_order = torch.arange(tokens, device=groups.device).expand_as(groups)
    place = groups.new_full((batch, budget + 1), tokens).scatter(1, own, tokens_in_order)[:, :budget]
    # Tokens that stand for nothing all write to the column `budget`, which is cut off.
    is_merged = torch.zeros((batch, budget + 1), dtype=torch.bool, device=groups.device).scatter(1, own, is_anchor)
    return Assignment(place.contiguous(), is_merged[:, :budget].contiguous(), slot)
