"""How long a GPU works in a run, whatever it waits for in between.

A small model, or a short prompt, leaves a GPU idle between kernels: the clock on the wall then tells how fast the host
launches them, and hardly what they cost. Profiling slows the host down, so these runs are none of those that are timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from vitcop_llava.families import Parts
from vitcop_llava.hooks.patching import Replacement
from vitcop_llava.tools.benchmark.breakdown import PARTS, modules_of
from vitcop_llava.tools.model.measuring import decode_greedily, prefill

Key = TypeVar("Key", bound=Hashable)

_MOST_STEPS = 4
"""One step is as the next; a profile of many takes long to read."""

_LABEL = "part of the model: "


@dataclass(frozen=True)
class Busy:
    """What a GPU worked.

    Attributes:
        prefill_seconds: In a prefill.
        token_seconds: In a step that generates a token for each row, the mean of up to four; None where fewer than two
            tokens were asked for.
        parts: Of the prefill's seconds, those of each of `vitcop_llava.tools.benchmark.breakdown.PARTS`.
    """

    prefill_seconds: float
    token_seconds: float | None
    parts: Mapping[str, float]


def measure_busy(model: Any, parts: Parts, inputs: Mapping[str, Any], *, new_tokens: int = 1) -> Busy | None:
    """Run a prefill and a few steps as `vitcop_llava.tools.model.measuring.measure` does, under torch's profiler.

    Args:
        model: As for `measure`.
        parts: Of the model.
        inputs: As for `measure`, on a GPU.
        new_tokens: Likewise.

    Returns:
        What the GPU worked; None where the profiler cannot see it.
    """
    steps, held = min(new_tokens - 1, _MOST_STEPS), dict[str, Any]()

    def start() -> None:
        held["token"], held["cache"] = prefill(model, inputs)

    with torch.inference_mode():
        with ExitStack() as stack:
            for module, name in modules_of(model, parts):
                stack.enter_context(_labeled(module, name))
            events = _profiled(start, ProfilerActivity.CPU)
        spent = busy_seconds(events)
        each = busy_seconds(_profiled(lambda: decode_greedily(model, inputs, **held, steps=steps))) if steps else None
    if spent is None:
        return None
    return Busy(spent, None if each is None else each / steps, busy_parts(events))


@contextmanager
def _labeled(module: nn.Module, name: str) -> Iterator[None]:
    """Give what a module's forward launches the name of its part, without a hook: a tower that is hooked runs whole."""

    def labeled(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with record_function(_LABEL + name):
            return original(*args, **kwargs)

    replacement = Replacement(module, "forward", labeled)
    try:
        yield
    finally:
        replacement.remove()


def _profiled(call: Callable[[], None], *more: ProfilerActivity) -> Any:
    """Return everything that ``call`` made a GPU do, and whatever ``more`` stands for, as torch's profiler lists it."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, *more], acc_events=True) as profiled:
        call()
        torch.cuda.synchronize()
    return profiled.events()


def busy_seconds(events: Iterable[Any]) -> float | None:
    """Return the seconds in which at least one kernel or copy of a profile ran; what ran side by side counts once.

    Args:
        events: As torch's profiler lists them, with times in microseconds.

    Returns:
        The seconds; None where nothing ran on a GPU, as where the profiler cannot see it.
    """
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )
    if not spans:
        return None
    total, reached = 0.0, spans[0][0]
    for start, end in spans:
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total / 1e6


def busy_parts(events: Iterable[Any]) -> dict[str, float]:
    """Return the seconds of what each part of a model launched, by the host's events; what none did is the rest.

    Args:
        events: As torch's profiler lists them: an operator's ``kernels`` have durations in microseconds, and its
            ``cpu_parent`` is what it was called in.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    for event in events:
        if event.device_type.name != "CPU" or not event.kernels:
            continue
        caller = event
        while caller is not None and not caller.name.startswith(_LABEL):
            caller = caller.cpu_parent
        name = "rest" if caller is None else caller.name.removeprefix(_LABEL)
        spent[name] += sum(kernel.duration for kernel in event.kernels) / 1e6
    return spent


def busy_fields(found: Mapping[Key, Sequence[Busy | None]], unpruned: Key) -> dict[Key, dict[str, Any]]:
    """Return the fields of a row that are about what a GPU worked, for each variant that was seen.

    Args:
        found: Passes of each variant.
        unpruned: The variant that shares are of.
    """
    fields: dict[Key, dict[str, Any]] = {}
    for key, passes in found.items():
        if seen := [each for each in passes if each is not None]:
            steps = [each.token_seconds for each in seen if each.token_seconds is not None]
            fields[key] = {
                "busy_prefill": statistics.median(each.prefill_seconds for each in seen),
                "busy_token": statistics.median(steps) if steps else None,
                "busy_parts": {name: statistics.median(each.parts[name] for each in seen) for name in PARTS},
            }
    whole = fields.get(unpruned, {}).get("busy_prefill")
    for each in fields.values():
        own = each["busy_prefill"]
        each["busy_share_of_unpruned"] = own / whole if own is not None and whole else None
    return fields
