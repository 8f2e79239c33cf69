"""What a run costs the host. A GPU that has little to do waits for launches, and pruning must not add to that wait.

Measured on a CPU with one thread, where the host's work and the kernels' are one: so the model has hardly any of the
latter, and many layers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

from vitcop_core import Method, identity_plan
from vitcop_llava.families import Parts
from vitcop_llava.tools.benchmark.prompts import BenchPrompt
from vitcop_llava.tools.benchmark.rounds import interleave
from vitcop_llava.tools.benchmark.run import UNPRUNED, BenchSettings, BenchVariant, plan_variants, pruned_by
from vitcop_llava.tools.model.measuring import decode_greedily, prefill


@dataclass(frozen=True)
class HostCost:
    """What one variant costs the host.

    Attributes:
        name: The method, or "unpruned".
        retained_tokens: The budget; None for the unpruned model.
        prefill, token: Seconds of the thread for a prefill, and for the fastest token after it; every round.
        prefill_ratio, token_ratio: The median, over the rounds, of the cost over the unpruned model's in that round.
    """

    name: str
    retained_tokens: float | None
    prefill: list[float]
    token: list[float]
    prefill_ratio: float
    token_ratio: float


@dataclass(frozen=True)
class HostResult:
    """What ran, and its costs.

    Attributes:
        visual_tokens, text_tokens: Of a prompt.
        rows: The unpruned model, and then each method at each budget.
        missing: What could not be measured, and why.
    """

    visual_tokens: int
    text_tokens: int
    rows: tuple[HostCost, ...]
    missing: tuple[str, ...]


class _Cost(NamedTuple):
    prefill: float
    token: float


def measure_host(model: Any, parts: Parts, prompt: BenchPrompt, settings: BenchSettings) -> HostResult:
    """Measure the unpruned model and each method at each budget, in turn.

    Args:
        model: On a CPU.
        parts: What the family adapter found.
        prompt: Its prompt.
        settings: With at least 2 tokens to generate.
    """
    unpruned = BenchVariant(UNPRUNED, None, None, identity_plan(parts.shape.num_layers, prompt.tiling.units))
    variants, unreached = plan_variants(model, settings, parts.shape.num_layers, prompt.tiling.units)
    runs = {each: partial(_run, model, prompt, each.method, settings.new_tokens) for each in (unpruned, *variants)}
    with _one_thread():
        found = interleave([runs], repeats=settings.repeats, seed=settings.seed, what="host time").found
    rows = tuple(_cost(variant, costs, found[unpruned]) for variant, costs in found.items())
    return HostResult(prompt.tiling.tokens, prompt.text_tokens, rows, tuple(row.remark for row in unreached))


def _cost(variant: BenchVariant, costs: list[_Cost], unpruned: list[_Cost]) -> HostCost:
    return HostCost(
        variant.name,
        variant.retained_tokens,
        [cost.prefill for cost in costs],
        [cost.token for cost in costs],
        median(own.prefill / other.prefill for own, other in zip(costs, unpruned, strict=True)),
        median(own.token / other.token for own, other in zip(costs, unpruned, strict=True)),
    )


def _run(model: Any, prompt: BenchPrompt, method: Method | None, new_tokens: int) -> _Cost:
    with pruned_by(model, method), torch.inference_mode():
        started = time.thread_time()
        token, cache = prefill(model, prompt.inputs)
        filled = time.thread_time() - started
        steps = []
        for step in range(1, new_tokens):
            inputs = _after(prompt.inputs, step)
            started = time.thread_time()
            decode_greedily(model, inputs, token, cache, steps=1)
            steps.append(time.thread_time() - started)
    return _Cost(filled, min(steps))


def _after(inputs: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the prompt as `decode_greedily` takes it for one more token than the ``step - 1`` that came after it."""
    mask = inputs["attention_mask"]
    return {"attention_mask": torch.cat([mask, mask.new_ones(len(mask), step - 1)], dim=1)}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
