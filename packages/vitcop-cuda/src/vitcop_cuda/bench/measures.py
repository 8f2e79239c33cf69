"""The measurements, each as a function that returns plain data."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitcop_core.ops import REFERENCES
from vitcop_cuda.bench.formulations import WIDTH, FourCalls, broadcast_bytes, broadcast_vic, centered, vic_inputs
from vitcop_cuda.bench.memory import free_bytes
from vitcop_cuda.bench.stored import (
    BatchRow,
    BroadcastRow,
    FourCallsRow,
    NoLaw,
    PowerLaw,
    Rates,
    SkippedRow,
    StoredTimes,
    VicRow,
)
from vitcop_cuda.bench.timing import Times, Work, interleaved

GPU_SETS_BYTES, MOST_SETS = 2**28, 64
"""On a GPU the inputs rotate among sets that together are several times its cache."""


def _sets(bytes_each: int, device: str) -> int:
    return 1 if device == "cpu" else max(1, min(MOST_SETS, GPU_SETS_BYTES // max(bytes_each, 1)))


def _plain(times: dict[str, Times]) -> dict[str, StoredTimes]:
    return {name: _stored(entry) for name, entry in times.items()}


def _stored(times: Times) -> StoredTimes:
    return {"median": times.median, "low": times.low, "high": times.high, "repeats": times.repeats}


def _product(features: torch.Tensor, dtype: torch.dtype) -> Work:
    wide = centered(features, dtype)
    out = torch.empty(wide.shape[0], wide.shape[1], wide.shape[1], dtype=dtype, device=wide.device)
    return partial(torch.bmm, wide, wide.mT, out=out)


def vic_at(tokens: int, repeats: int, device: str, rates: Rates) -> VicRow:
    """Time kernel, reference and the distance product alone, interleaved, and compare the kernel with its floors."""
    given = [vic_inputs(tokens, 1, device, seed) for seed in range(_sets(tokens * WIDTH * 4, device))]
    runs: dict[str, Sequence[Work]] = {
        "kernel": [partial(torch.ops.vitcop.vic, *arguments) for arguments in given],
        "reference": [partial(REFERENCES["vic"], *arguments) for arguments in given],
        "product, float64": [_product(arguments[0], torch.float64) for arguments in given],
        "product, float32": [_product(arguments[0], torch.float32) for arguments in given],
    }
    times = interleaved(runs, repeats, device, graphs=("kernel", "product, float64"), what=f"vic, n = {tokens}")
    kernel = times.get("kernel (graph)", times["kernel"]).median
    product = times.get("product, float64 (graph)", times["product, float64"]).median
    # Each pair once in float64; features read once, positions and results once.
    operations = tokens * tokens * WIDTH
    moved = tokens * WIDTH * 4 + tokens * (8 + 8 + 3 * 4)
    bounds = operations / rates["float64_operations"], moved / rates["copy_bytes"]
    return {
        "tokens": tokens,
        "seconds": _plain(times),
        "reference_over_kernel": times["reference"].median / times["kernel"].median,
        "kernel_over_product": kernel / product,
        "floor_of_operations": bounds[0],
        "floor_of_bytes": bounds[1],
        "kernel_over_floor": kernel / max(bounds),
    }


def broadcast_at(tokens: int, repeats: int, device: str) -> BroadcastRow | SkippedRow:
    """Return the broadcast formulation beside the kernel, where its differences fit into half of the free memory."""
    needed, free = broadcast_bytes(tokens), free_bytes(device)
    if needed > free // 2:
        return {
            "tokens": tokens,
            "skipped": f"needs {needed / 2**30:.1f} GiB, more than half of {free / 2**30:.1f} GiB",
        }
    given = vic_inputs(tokens, 1, device, 0)
    runs: dict[str, Sequence[Work]] = {
        "kernel": [partial(torch.ops.vitcop.vic, *given)],
        "broadcast": [partial(broadcast_vic, *given)],
    }
    times = interleaved(runs, repeats, device, what=f"broadcast, n = {tokens}")
    ratio = times["broadcast"].median / times["kernel"].median
    return {"tokens": tokens, "bytes": needed, "seconds": _plain(times), "broadcast_over_kernel": ratio}


def four_calls(repeats: int, device: str, prefill: Path | None) -> FourCallsRow:
    """Return the calls that one pruned prefill makes, and their share of a stored one's time."""
    given = [FourCalls(device, seed) for seed in range(_sets(4 * 2**20, device))]
    runs: dict[str, Sequence[Work]] = {
        "kernels": [calls.kernels for calls in given],
        "references": [calls.references for calls in given],
    }
    times = interleaved(runs, repeats, device, graphs=("kernels",), what="four calls")
    kernels, references = times["kernels"].median, times["references"].median
    found: FourCallsRow = {"seconds": _plain(times), "references_over_kernels": references / kernels}
    if prefill is not None:
        row = _pruned_prefill(prefill)
        seconds, busy = row["prefill"]["median"], row.get("busy_prefill")
        found |= {"prefill": prefill.name, "prefill_seconds": seconds}
        found |= {"kernels_share": kernels / seconds, "references_share": references / seconds}
        if busy is not None:
            found["kernels_share_of_busy"] = times.get("kernels (graph)", times["kernels"]).median / busy
    return found


def _pruned_prefill(stored: Path) -> dict[str, Any]:
    """Return the row of ViTCoP at 64 tokens in a result of `vitcop bench`."""
    rows = json.loads(stored.read_text())["rows"]
    row: dict[str, Any]
    (row,) = (row for row in rows if (row["method"], row["retained_tokens"]) == ("ViTCoP", 64))
    return row


def growth_by_batch(batches: Sequence[int], tokens: int, repeats: int, device: str) -> list[BatchRow]:
    """Return the kernel on more and more rows, interleaved."""
    runs: dict[str, Sequence[Work]] = {}
    for batch in batches:
        sets = range(_sets(batch * tokens * WIDTH * 4, device))
        runs[str(batch)] = [partial(torch.ops.vitcop.vic, *vic_inputs(tokens, batch, device, seed)) for seed in sets]
    times = interleaved(runs, repeats, device, graphs=tuple(runs), what="batches")
    one = times.get(f"{batches[0]} (graph)", times[str(batches[0])]).median
    found = list[BatchRow]()
    for batch in batches:
        entry = times.get(f"{batch} (graph)", times[str(batch)])
        found.append({"batch": batch, "tokens": tokens, "seconds": _stored(entry), "over_one": entry.median / one})
    return found


def power_law(seconds: Mapping[int, float], least: int = 288) -> PowerLaw | NoLaw:
    """Return ``seconds = factor * n ** exponent``, fitted to the logarithms of seconds by tokens, from ``least``
    tokens on.

    Below that a call costs what it costs to make, and the fit would say nothing about the work.
    """
    points = [(math.log(n), math.log(each)) for n, each in seconds.items() if n >= least or len(seconds) < 3]
    if len(points) < 2:
        return {}
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    return {"exponent": slope, "factor": math.exp(intercept), "from_tokens": math.exp(points[0][0])}
