"""The bench: the unpruned model, every method at every budget, and their oracles, all in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from vitcop_core import Method, Plan, find_method, identity_plan
from vitcop_llava.families import Parts
from vitcop_llava.pruner import prune
from vitcop_llava.tools.benchmark.breakdown import PARTS, time_parts
from vitcop_llava.tools.benchmark.busy import Busy, busy_fields, measure_busy
from vitcop_llava.tools.benchmark.oracle import run_oracle
from vitcop_llava.tools.benchmark.prompts import BenchPrompt
from vitcop_llava.tools.benchmark.result import BenchResult, BenchRow, Spread
from vitcop_llava.tools.benchmark.rounds import interleave
from vitcop_llava.tools.model.measuring import Measured, decode_greedily, measure, now, prefill

UNPRUNED = "unpruned"
_PART_PASSES, _BUSY_PASSES = 3, 2
"""What a GPU works differs little, and a profile takes long to read."""


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and how often.

    Attributes:
        methods: By names that `vitcop_core.find_method` reads.
        retained_tokens: Budgets of each image or clip.
        repeats: Rounds, after one that warms up.
        new_tokens: Tokens to generate for each row.
        seed: Of the order of the variants.
        brief: Leave out the oracles, and where the time goes.
        capture: Replay the prefills of methods; see `prune`.
    """

    methods: tuple[str, ...]
    retained_tokens: tuple[int | float, ...]
    repeats: int = 5
    new_tokens: int = 8
    seed: int = 0
    brief: bool = False
    capture: bool = False


class BenchVariant(NamedTuple):
    """A method at a budget; no method for the unpruned model."""

    name: str
    retained_tokens: float | None
    method: Method | None
    plan: Plan


def run_bench(model: Any, parts: Parts, prompt: BenchPrompt, settings: BenchSettings) -> BenchResult:
    """Measure, after one round to warm up, ``settings.repeats`` rounds of everything, and then where the time goes.

    Methods whose plans have the same length in every layer share an oracle.
    """
    units, layers = prompt.tiling.units, parts.shape.num_layers
    unpruned = BenchVariant(UNPRUNED, None, None, identity_plan(layers, units))
    variants, missing = plan_variants(model, settings, layers, units)
    groups: dict[tuple[int, ...], dict[Any, Callable[[], Any]]] = {}
    for variant in variants:
        lengths = variant.plan.tokens_per_layer
        group = groups.setdefault(lengths, {})
        if not settings.brief:
            group.setdefault(lengths, partial(_time_oracle, model, parts, prompt, variant.plan, settings))
        group[variant] = partial(_measure, model, prompt, variant, settings)
    alone: dict[Any, Callable[[], Any]] = {unpruned: partial(_measure, model, prompt, unpruned, settings)}
    runs = interleave([alone, *groups.values()], repeats=settings.repeats, seed=settings.seed, what="rounds")
    ready = [variant for variant in (unpruned, *variants) if variant not in runs.failed and not settings.brief]
    passes = interleave(
        [{variant: partial(_time_parts, model, parts, prompt, variant)} for variant in ready],
        repeats=min(settings.repeats, _PART_PASSES),
        warm_up=0,
        seed=settings.seed,
        what="where the time goes",
    )
    busy = _watch_gpu(model, parts, prompt, unpruned, ready, settings)
    whole, text = runs.found[unpruned], prompt.text_tokens + prompt.tiling.newlines
    size = next(model.parameters()).element_size() * prompt.batch
    full_macs = unpruned.plan.macs(parts.shape, text)
    rows = []
    for variant in (unpruned, *variants):
        stays = text if variant is unpruned else prompt.text_tokens
        row = replace(
            _row(variant, runs.found[variant], runs.found.get(variant.plan.tokens_per_layer, [])),
            missing=runs.failed.get(variant),
            share_of_unpruned=_ratio([run.prefill_seconds for run in runs.found[variant]], whole),
            macs=(macs := variant.plan.macs(parts.shape, stays)),
            share_of_macs=macs / full_macs,
            planned_cache_bytes=variant.plan.kv_bytes(parts.shape, stays, size),
            parts=_medians(passes.found.get(variant, [])),
            **busy.get(variant, {}),
        )
        rows.append(row)
    return BenchResult(
        prompt.tiling.tokens, prompt.tiling.newlines, prompt.text_tokens, _in_order(rows, missing, settings)
    )


def plan_variants(
    model: Any, settings: BenchSettings, layers: int, units: Sequence[int]
) -> tuple[list[BenchVariant], list[BenchRow]]:
    """Return every method at every budget that it can meet, and a row for each that it cannot, with the method's
    reason.
    """
    variants, missing = [], []
    for tokens in settings.retained_tokens:
        for name in settings.methods:
            try:
                method = find_method(name, retained_tokens=tokens)
                plan = method.plan(layers, units)
                prune(model, method).remove()  # which knows more of the model than its layers
            except ValueError as error:
                missing.append(BenchRow(name, tokens, missing=str(error)))
            else:
                variants.append(BenchVariant(name, tokens, method, plan))
    return variants, missing


def pruned_by(model: Any, method: Method | None, *, capture: bool = False) -> AbstractContextManager[Any]:
    """Return the model under a method, or as it is."""
    return nullcontext() if method is None else prune(model, method, capture=capture)


@contextmanager
def _ready(model: Any, prompt: BenchPrompt, variant: BenchVariant, settings: BenchSettings) -> Iterator[None]:
    """Prepare the model under a variant's method, or as it is.

    Where prefills are to be replayed they are recorded, which takes torch's spare memory. The unpruned model runs as
    often beforehand, so that nobody measures another's leavings.
    """
    with pruned_by(model, variant.method, capture=settings.capture and variant.method is not None):
        with torch.inference_mode():
            for _ in range(_ahead(settings)):  # the first shows the shape, the second is recorded
                token, cache = prefill(model, prompt.inputs)
                decode_greedily(model, prompt.inputs, token, cache, steps=2)
        yield


def _ahead(settings: BenchSettings) -> int:
    """Return how often everything runs directly before it is measured."""
    return 3 if settings.capture else 0


def _measure(model: Any, prompt: BenchPrompt, variant: BenchVariant, settings: BenchSettings) -> Measured:
    with _ready(model, prompt, variant, settings):
        return measure(model, prompt.inputs, new_tokens=settings.new_tokens)


def _time_oracle(model: Any, parts: Parts, prompt: BenchPrompt, plan: Plan, settings: BenchSettings) -> float:
    device = prompt.inputs["input_ids"].device
    with torch.inference_mode():
        for _ in range(_ahead(settings)):
            run_oracle(model, parts, prompt, plan)
        started = now(device)
        run_oracle(model, parts, prompt, plan)
        return now(device) - started


def _time_parts(model: Any, parts: Parts, prompt: BenchPrompt, variant: BenchVariant) -> dict[str, float]:
    with pruned_by(model, variant.method):
        return time_parts(model, parts, prompt)


def _watch_gpu(
    model: Any,
    parts: Parts,
    prompt: BenchPrompt,
    unpruned: BenchVariant,
    variants: Sequence[BenchVariant],
    settings: BenchSettings,
) -> dict[BenchVariant, dict[str, Any]]:
    """Return the fields of each variant's row about what a GPU works; none on a CPU."""
    if prompt.inputs["input_ids"].device.type != "cuda":
        return {}
    runs = interleave(
        [{each: partial(_measure_busy, model, parts, prompt, each, settings)} for each in variants],
        repeats=min(settings.repeats, _BUSY_PASSES),
        seed=settings.seed,
        what="what the GPU works",
    )
    return busy_fields(runs.found, unpruned)


def _measure_busy(
    model: Any, parts: Parts, prompt: BenchPrompt, variant: BenchVariant, settings: BenchSettings
) -> Busy | None:
    with pruned_by(model, variant.method):  # as it is: parts are told by what launches them
        return measure_busy(model, parts, prompt.inputs, new_tokens=settings.new_tokens)


def _row(variant: BenchVariant, runs: Sequence[Measured], oracle: Sequence[float]) -> BenchRow:
    plan = variant.plan
    row = BenchRow(variant.name, variant.retained_tokens, None, float(plan.average_tokens), plan.tokens_per_layer)
    if not runs:
        return row
    prefill = [run.prefill_seconds for run in runs]
    steps = [run.token_seconds for run in runs if run.token_seconds is not None]
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    row = replace(
        row,
        prefill=Spread.of(prefill),
        token=Spread.of(steps) if steps else None,
        peak_bytes=statistics.median_low(peaks) if peaks else None,
        cache_bytes=runs[0].cache_bytes,
    )
    if variant.method is None or not oracle:
        return row
    return replace(
        row,
        oracle=Spread.of(oracle),
        over_oracle=Spread.of([took / could for took, could in zip(prefill, oracle, strict=True)]),
        over_oracle_of_medians=statistics.median(prefill) / statistics.median(oracle),
    )


def _ratio(seconds: Sequence[float], whole: Sequence[Measured]) -> float | None:
    if not seconds or not whole:
        return None
    return statistics.median(seconds) / statistics.median(run.prefill_seconds for run in whole)


def _medians(passes: Sequence[dict[str, float]]) -> dict[str, float] | None:
    return {name: statistics.median(each[name] for each in passes) for name in PARTS} if passes else None


def _in_order(rows: Sequence[BenchRow], missing: Sequence[BenchRow], settings: BenchSettings) -> tuple[BenchRow, ...]:
    """Return the unpruned model, then by budget, then by method, as they were asked for."""

    def place(row: BenchRow) -> tuple[int, int]:
        if row.retained_tokens is None:
            return -1, 0
        return settings.retained_tokens.index(row.retained_tokens), settings.methods.index(row.method)

    return tuple(sorted([*rows, *missing], key=place))
