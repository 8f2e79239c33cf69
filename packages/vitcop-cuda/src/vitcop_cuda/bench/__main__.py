"""Measures the kernels and stores what it finds: ``python -m vitcop_cuda.bench --out kernels-cpu.json``.

Everything that is compared takes turns in one run. Seconds are medians with their quartiles. On a GPU they come from
events around many calls on rotating inputs, once as they are and once as a replayed CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import vitcop_cuda
from vitcop_core.files import write_json
from vitcop_cuda.bench.machine import environment, rates
from vitcop_cuda.bench.measures import broadcast_at, four_calls, growth_by_batch, power_law, vic_at
from vitcop_cuda.bench.memory import peak_of_vic
from vitcop_cuda.bench.stored import KernelMeasurements, StoredKernels

PEAK_TOKENS = 2880


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(prog="python -m vitcop_cuda.bench", description=__doc__)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--tokens", type=int, nargs="+", default=[172, 288, 576, 864, 1152, 2880])
    options.add_argument("--broadcast", type=int, nargs="*", default=[172, 288, 864, 1152], help="tokens; none to skip")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--broadcast-repeats", type=int, default=3)
    options.add_argument("--threads", type=int, help="of torch on the CPU; as many as it takes by itself if not given")
    options.add_argument("--prefill", type=Path, help="stored result of vitcop bench, for shares of a prefill")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    return options


def measure(given: argparse.Namespace) -> KernelMeasurements:
    """Return every measurement, in the order in which it is stored."""
    device = given.device
    found = rates(device, max(3, given.repeats // 3))
    by_tokens = [vic_at(tokens, given.repeats, device, found) for tokens in given.tokens]
    peak = peak_of_vic(PEAK_TOKENS, device)
    return {
        "environment": environment(),
        "kernels_built_with": vars(vitcop_cuda.build_information()),
        "rates": found,
        "vic": by_tokens,
        "broadcast": [broadcast_at(tokens, given.broadcast_repeats, device) for tokens in given.broadcast],
        "peak_of_vic": {"tokens": PEAK_TOKENS, "bytes": peak, "matrices_of_floats": peak / 4 / PEAK_TOKENS**2},
        "four_calls": four_calls(given.repeats, device, given.prefill),
        "growth_by_tokens": power_law({row["tokens"]: row["seconds"]["kernel"]["median"] for row in by_tokens}),
        "growth_by_batch": growth_by_batch(given.batches, given.tokens[0], given.repeats, device),
    }


def show(result: KernelMeasurements) -> None:
    """Print a short table."""
    print(f"{'n':>6} {'kernel':>10} {'reference':>10} {'product':>10}   over kernel: reference, product; of floor")
    for row in result["vic"]:
        seconds = [
            f"{1e3 * row['seconds'][name]['median']:7.2f} ms" for name in ("kernel", "reference", "product, float64")
        ]
        ratios = (
            f"{row['reference_over_kernel']:.1f}x, {row['kernel_over_product']:.2f}; {row['kernel_over_floor']:.1f}"
        )
        print(f"{row['tokens']:>6} {' '.join(seconds)}   {ratios}")
    for each in result["broadcast"]:
        found = f"{each['broadcast_over_kernel']:.0f} times the kernel" if "seconds" in each else each["skipped"]
        print(f"broadcast, n = {each['tokens']}:", found)
    print(f"peak of vic at n = {PEAK_TOKENS}: {result['peak_of_vic']['matrices_of_floats']:.2f} n x n floats")
    calls = result["four_calls"]
    share = f", {calls['kernels_share']:.2%} of {calls['prefill']}" if "prefill" in calls else ""
    print(f"four calls: {1e3 * calls['seconds']['kernels']['median']:.2f} ms{share}")
    print("growth by batch:", ", ".join(f"{row['batch']}: {row['over_one']:.2f}" for row in result["growth_by_batch"]))


def main() -> None:
    """Measures, prints a table, and stores the result."""
    given = parser().parse_args()
    if vitcop_cuda.reason:
        raise SystemExit(f"the kernels are not there: {vitcop_cuda.reason}")
    if given.device == "cuda" and not (torch.cuda.is_available() and vitcop_cuda.build_information().cuda):
        raise SystemExit("no CUDA kernels, or no GPU to run them on")
    if given.prefill is not None and not given.prefill.is_file():
        raise SystemExit(f"prefill must be a stored result of vitcop bench, got {given.prefill}, which is no file")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    command = " ".join(["python -m vitcop_cuda.bench", *sys.argv[1:]])
    with torch.inference_mode():
        result: StoredKernels = {"command": command, **measure(given)}
    if given.out is not None:
        write_json(given.out, result)
    show(result)


if __name__ == "__main__":
    main()
