"""Co-pruning (Algorithm 3): elites by key norm within clusters by vision, the rest of each cluster merged."""

from typing import Any

import torch
from torch import Tensor

from vitcop_core.checks import check_floating, check_int, check_integral, check_rows
from vitcop_core.ops._groups import assign
from vitcop_core.ops._library import LIBRARY, accumulator, register
from vitcop_core.ops._quotas import top_up_quotas
from vitcop_core.tokens import Selection


def co_prune(
    hidden: Tensor,
    labels: Tensor,
    key_norm: Tensor,
    budget: int,
    num_clusters: int,
    *,
    lengths: Tensor | None = None,
    counts: Tensor | None = None,
) -> Selection:
    """Reduce each row to ``budget`` tokens: elites that stay themselves, and one merged token a cluster.

    With N tokens in N_c clusters, cluster c gets ``floor(|C_c| / N * (B - N_c))`` elites (Equation 5); what the floors
    leave over is handed out by largest remainder, so that the result is exactly B tokens. The elites are the tokens of
    smallest norm; the mean of the others' hidden states is the merged token (Equation 6), which takes the place of the
    upper median of its group. With more clusters than budget, the B - 1 clusters with the smallest sums of norms become
    one token each and everything else one more. With budget for all tokens, nothing changes.

    Args:
        hidden: ``[B, n, d]`` floating. Gradients flow from the result's ``hidden`` to it.
        labels: ``[B, n]`` int64, from 0 to ``num_clusters - 1``; anything in padding.
        key_norm: ``[B, n]`` floating, the smaller the more important. NaN ranks last.
        budget: Width of the result, at least 1; one greater than n leaves unused outputs in every row.
        num_clusters: An upper bound on the clusters of any row. A row's own number is that of its distinct labels.
        lengths: ``[B]`` int64, valid tokens of each row; None where all n are.
        counts: ``[B]`` int64, each row's own budget, at most ``budget``; None for ``budget``. A row with a budget of 0
            keeps nothing.

    Returns:
        All four fields; ``hidden`` has the input's dtype, its means were accumulated in float32 or better. Unused
        outputs at the end of a row: index n, hidden 0, not merged.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, a device, ``budget`` or ``num_clusters`` does not fit.
    """
    check_floating("hidden", hidden, ("B", "n", "d"))
    batch, tokens, _ = hidden.shape
    check_integral("labels", labels, (batch, tokens), like=hidden)
    check_floating("key_norm", key_norm, (batch, tokens), like=hidden)
    budget = check_int("budget", budget, 1)
    num_clusters = check_int("num_clusters", num_clusters, 1)
    check_rows(hidden, lengths=lengths, counts=counts)
    merged, index, is_merged, slot = torch.ops.vitcop.co_prune(
        hidden, labels, key_norm.detach(), budget, num_clusters, lengths, counts
    )
    return Selection(index, merged, is_merged, slot)


def group_means(hidden: Tensor, slot: Tensor, budget: int) -> Tensor:
    """Return the mean of the hidden states that go into each output.

    Args:
        hidden: ``[B, n, d]`` floating.
        slot: ``[B, n]`` int64, the output of each token; ``budget`` for those that go nowhere.
        budget: Outputs of each row.

    Returns:
        ``[B, budget, d]`` in the dtype of ``hidden``; 0 for outputs without a token. One token alone comes back
        exactly.
    """
    batch, _, width = hidden.shape
    rows = torch.arange(batch, device=hidden.device).unsqueeze(1) * (budget + 1)
    wide = hidden.to(accumulator(hidden))
    sums = wide.new_zeros((batch * (budget + 1), width)).index_add(0, (slot + rows).flatten(), wide.flatten(0, 1))
    means = sums.view(batch, budget + 1, width)[:, :budget] / _slot_sizes(slot, budget)[:, :budget].unsqueeze(2)
    return means.to(hidden.dtype).contiguous()


def _slot_sizes(slot: Tensor, budget: int) -> Tensor:
    """Return ``[B, budget + 1]`` int64: tokens in each output, 1 where there are none."""
    sizes = slot.new_zeros((slot.shape[0], budget + 1)).scatter_add(1, slot, torch.ones_like(slot))
    return sizes.clamp(min=1)


def _reference(
    hidden: Tensor,
    labels: Tensor,
    key_norm: Tensor,
    budget: int,
    num_clusters: int,
    lengths: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    place, is_merged, slot = assign(labels, key_norm, budget, num_clusters, lengths, counts, top_up_quotas)
    return group_means(hidden, slot, budget), place, is_merged, slot


def _fake(
    hidden: Tensor,
    labels: Tensor,
    key_norm: Tensor,
    budget: int,
    num_clusters: int,
    lengths: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, width = hidden.shape
    index = labels.new_empty((batch, budget))
    is_merged = hidden.new_empty((batch, budget), dtype=torch.bool)
    return hidden.new_empty((batch, budget, width)), index, is_merged, labels.new_empty((batch, tokens))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[3])
    ctx.budget = inputs[3]


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    (slot,) = ctx.saved_tensors
    grad = grads[0]
    if grad is None:
        return (None,) * 7
    # Every token of a group has the same part in its mean; padding has none in anything.
    spread = torch.nn.functional.pad(grad, (0, 0, 0, 1)) / _slot_sizes(slot, ctx.budget).unsqueeze(2).to(grad.dtype)
    return spread.gather(1, slot.unsqueeze(2).expand(-1, -1, grad.shape[2])), *(None,) * 6


register(
    "co_prune(Tensor hidden, Tensor labels, Tensor key_norm, int budget, int num_clusters, "
    "Tensor? lengths=None, Tensor? counts=None) -> (Tensor hidden, Tensor index, Tensor is_merged, Tensor slot)",
    _reference,
    _fake,
)
torch.library.register_autograd("vitcop::co_prune", _backward, setup_context=_setup_context, lib=LIBRARY)
