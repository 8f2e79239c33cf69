"""Timing of calls that take turns, so that a noisy machine hits all of them alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

Work = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one call.

    Attributes:
        median: Of all repeats.
        low, high: The quartiles; the smallest and largest where there are fewer than four repeats.
        repeats: How many there were.
    """

    median: float
    low: float
    high: float
    repeats: int


def summary(seconds: Sequence[float]) -> Times:
    """Return median and spread."""
    low, high = min(seconds), max(seconds)
    if len(seconds) >= 4:
        low, _, high = statistics.quantiles(seconds, n=4)
    return Times(statistics.median(seconds), low, high, len(seconds))


def _cpu_seconds(calls: Sequence[Work], place: int) -> float:
    started = time.perf_counter()
    calls[place % len(calls)]()
    return time.perf_counter() - started


def _cuda_seconds(run: Work, calls: int, place: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    milliseconds: float = start.elapsed_time(stop)
    return milliseconds / 1000 / calls


def _all(calls: Sequence[Work]) -> Work:
    def run() -> None:
        for call in calls:
            call()

    return run


def captured(calls: Sequence[Work]) -> Work:
    """Return a CUDA graph of the calls, one after the other, as one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _all(calls)()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _all(calls)()
    return graph.replay


def interleaved(
    runs: Mapping[str, Sequence[Work]], repeats: int, device: str, *, graphs: Sequence[str] = (), what: str = ""
) -> dict[str, Times]:
    """Time every entry in turn, after one round to warm up.

    Args:
        runs: By name, the same call on one or more sets of inputs. On a GPU all sets run in one timing, so that
            together they do not fit into its cache; on a CPU they take turns.
        repeats: Rounds.
        device: ``"cpu"`` or ``"cuda"``.
        graphs: Names that are timed once more as a replayed CUDA graph, under ``name + " (graph)"``.
        what: For the progress bar.

    Returns:
        Seconds of a call by name.
    """
    timed: dict[str, Callable[[int], float]] = {}
    for name, calls in runs.items():
        if device == "cpu":
            timed[name] = partial(_cpu_seconds, calls)
            continue
        timed[name] = partial(_cuda_seconds, _all(calls), len(calls))
        if name in graphs:
            timed[f"{name} (graph)"] = partial(_cuda_seconds, captured(calls), len(calls))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in tqdm(range(repeats + 1), desc=what, file=sys.stderr, leave=False):
        for name, once in timed.items():
            taken = once(repeat)
            if repeat:
                seconds[name].append(taken)
    return {name: summary(values) for name, values in seconds.items()}
