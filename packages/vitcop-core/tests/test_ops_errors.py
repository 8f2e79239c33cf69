"""Bad arguments of the operators: which one, what was expected, and what came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vitcop_core import ops

F, L = torch.rand(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64)
NO_TENSOR: Any = [1.0]
P, W = torch.rand(2, 4, 2), torch.rand(2, 4)
Q = F.unsqueeze(1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ops.top_tokens(NO_TENSOR, 1), TypeError, "saliency must be a tensor, got list"),
        (lambda: ops.top_tokens(L, 1), TypeError, "saliency must have a floating dtype, got torch.int64"),
        (lambda: ops.top_tokens(W[0], 1), ValueError, r"saliency must be of shape \[B, n\], got \[4\]"),
        (lambda: ops.top_tokens(W, 5), ValueError, "k must be an integer from 1 to 4, got 5"),
        (lambda: ops.top_tokens(W, 0), ValueError, "k must be an integer from 1 to 4, got 0"),
        (lambda: ops.top_tokens(W, True), TypeError, "k must be an integer"),
        (lambda: ops.top_tokens(W, 1, lengths=torch.ones(2)), TypeError, "lengths must have dtype torch.int64"),
        (lambda: ops.top_tokens(W, 1, counts=L[0]), ValueError, r"counts must be of shape \[2\], got \[4\]"),
        (lambda: ops.top_tokens(W, 1, lengths=L[:, 0].to("meta")), ValueError, "lengths must be on cpu, got meta"),
        (lambda: ops.key_norm(F), ValueError, r"keys must be of shape \[B, G, n, e\]"),
        (lambda: ops.cls_saliency(F[0], F.unsqueeze(1), 1.0), ValueError, r"query_cls must be of shape \[2, 1, 3\]"),
        (lambda: ops.received_attention(Q, Q[:, 0], 1.0), ValueError, r"keys must be of shape \[B, H, n, e\]"),
        (lambda: ops.received_attention(Q[..., :3, :], Q, 1.0), ValueError, r"queries must be of shape \[2, 1, 4, 3\]"),
        (lambda: ops.received_attention(Q.long(), Q, 1.0), TypeError, "queries must have a floating dtype"),
        (lambda: ops.received_attention(Q, Q, float("nan")), ValueError, "scale must be a finite number"),
        (lambda: ops.received_attention(Q, Q, 1.0, lengths=L), ValueError, r"lengths must be of shape \[2\]"),
        (lambda: ops.vic(F, F, 2), ValueError, r"positions must be of shape \[2, 4, 2\], got \[2, 4, 3\]"),
        (lambda: ops.vic(F, P, 5), ValueError, "num_centers must be an integer from 1 to 4"),
        (lambda: ops.vic(F, P, 2, cutoff_distance=0), ValueError, "cutoff_distance must be a positive number"),
        (lambda: ops.vic(F, P, 2, spatial_threshold=-1), ValueError, "spatial_threshold must be a positive number"),
        (lambda: ops.co_prune(F, W, W, 2, 1), TypeError, "labels must have dtype torch.int64"),
        (lambda: ops.co_prune(F, L, W[:, :3], 2, 1), ValueError, r"key_norm must be of shape \[2, 4\]"),
        (lambda: ops.co_prune(F, L, W, 0, 1), ValueError, "budget must be an integer >= 1"),
        (lambda: ops.co_prune(F, L, W, 2, 0), ValueError, "num_clusters must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
