"""The optimizer and the order of examples, alike in all stages of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn


def optimizer_for(
    parameters: list[nn.Parameter], rate: float, steps: int, warmup: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Return AdamW with a linear warm-up and a cosine to a hundredth of the rate."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def descend(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    clipped: Iterable[nn.Parameter],
) -> None:
    """Take one step against the gradient of a loss, which for the ``clipped`` parameters is no longer than 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(clipped, 1.0)
    optimizer.step()
    schedule.step()


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Yield every index once in a new order, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (int(index) for index in rng.permutation(count))
