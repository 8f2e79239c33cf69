"""The calls that are timed: the kernels, the references, the bare product, and the broadcast formulation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vitcop_core.ops import REFERENCES

WIDTH = 1024
"""Of the vision tower's keys in LLaVA-1.5: 16 heads of 64."""

CUTOFF, THRESHOLD = 8.0, 0.6


def vic_inputs(tokens: int, batch: int, device: str, seed: int) -> tuple[Any, ...]:
    """Return arguments of ``vic``: features whose distances are of the cutoff's size, on the grid that they were kept
    from.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, tokens, WIDTH, generator=generator) * CUTOFF / math.sqrt(2 * WIDTH)
    side = math.isqrt(2 * tokens) + 1
    cells = torch.stack([torch.randperm(side * side, generator=generator)[:tokens].sort().values for _ in range(batch)])
    positions = torch.stack([cells // side, cells % side], 2).float() / side
    centers = math.ceil(0.12 * tokens)
    return features.to(device), positions.to(device), centers, CUTOFF, THRESHOLD


def centered(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what the distance product multiplies with itself."""
    wide = features.to(dtype)
    return wide - wide.mean(1, keepdim=True)


def broadcast_vic(features: Tensor, positions: Tensor, num_centers: int, cutoff: float, threshold: float) -> Tensor:
    """Return the released code's way to the labels of one unit, from its description: for timing, not for its results.

    All differences at once, ``n * n * d`` numbers, and their squares; the nearest denser token and the labels in loops
    over tokens, which read the device in every step.
    """
    rows = features[0]
    distances = ((rows[:, None, :] - rows[None, :, :]) ** 2).sum(-1).sqrt()
    density = (-(distances / cutoff).square()).exp().sum(1)
    near = (positions[0][:, None] - positions[0][None]).square().sum(-1).sqrt() <= threshold
    count = rows.shape[0]
    delta = torch.full((count,), math.inf, device=rows.device)
    parent = torch.zeros(count, dtype=torch.int64, device=rows.device)
    for token in range(count):
        denser = (density > density[token]) & near[token]
        if denser.any():
            delta[token], parent[token] = distances[token].masked_fill(~denser, math.inf).min(0)
    centers = (density * delta).argsort(descending=True)[:num_centers]
    labels = torch.full((count,), -1, dtype=torch.int64, device=rows.device)
    labels[centers] = torch.arange(num_centers, device=rows.device)
    for token in density.argsort(descending=True).tolist():
        if labels[token].item() < 0:
            labels[token] = labels[int(parent[token].item())]
    return labels


def broadcast_bytes(tokens: int) -> int:
    """Return what that formulation holds at once: the differences and their squares, and a few matrices."""
    return 2 * tokens * tokens * WIDTH * 4 + 4 * tokens * tokens * 4


class FourCalls:
    """The four calls of one LLaVA-1.5-7B prefill at 64 tokens: VIC, both key norms, co-pruning, and the last cut.

    Args:
        device: Where the inputs are.
        seed: Of the inputs.
    """

    TOKENS, BUDGET, LAST = 172, 77, 15

    def __init__(self, device: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vic = vic_inputs(self.TOKENS, 1, device, seed)
        shapes = (1, self.TOKENS, 4096), (1, 32, self.TOKENS, 128), (1, 32, self.BUDGET, 128)
        drawn = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes)
        self.hidden, self.keys, self.deep_keys = drawn

    def kernels(self) -> None:
        """Run all of them through the dispatcher."""
        self._run(torch.ops.vitcop)

    def references(self) -> None:
        """Run all of them on the pure-torch references."""
        self._run(None)

    def _run(self, namespace: Any) -> None:
        def call(name: str, *given: Any) -> Any:
            return (REFERENCES[name] if namespace is None else getattr(namespace, name))(*given)

        labels = call("vic", *self.vic)[0]
        call("co_prune", self.hidden, labels, call("key_norm", self.keys), self.BUDGET, self.vic[2])
        call("top_tokens", call("key_norm", self.deep_keys), self.LAST, True)
