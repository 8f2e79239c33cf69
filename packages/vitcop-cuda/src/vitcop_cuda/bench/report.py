"""Tables and the picture of the docs, from stored results."""

from __future__ import annotations

from pathlib import Path

from vitcop_core.environment import machine_of
from vitcop_core.files import write_whole
from vitcop_cuda.bench.stored import BroadcastRow, SkippedRow, StoredKernels, StoredRegisters, StoredTimes


def _milliseconds(entry: StoredTimes) -> str:
    return f"{1e3 * entry['median']:.3g} ms"


def _times(row: BroadcastRow | SkippedRow) -> str:
    return f"{row['broadcast_over_kernel']:.0f} times" if "seconds" in row else row["skipped"]


def kernels_table(stored: StoredKernels) -> str:
    """Return ``vic`` by tokens: kernel, reference, product and the broadcast formulation."""
    broadcast = {row["tokens"]: row for row in stored["broadcast"]}
    lines = [
        "| tokens | kernel | quartiles | reference | product alone | broadcast | times floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in stored["vic"]:
        seconds, other = row["seconds"], broadcast.get(row["tokens"])
        timed = seconds.get("kernel (graph)", seconds["kernel"])
        cells = [
            str(row["tokens"]),
            _milliseconds(timed),
            f"{1e3 * timed['low']:.3g} to {1e3 * timed['high']:.3g}",
            f"{_milliseconds(seconds['reference'])}, {row['reference_over_kernel']:.1f} times",
            f"{_milliseconds(seconds['product, float64'])}, kernel {row['kernel_over_product']:.2f} of it",
            ""
            if other is None
            else f"{other['broadcast_over_kernel']:.0f} times"
            if "seconds" in other
            else other["skipped"],
            f"{row['kernel_over_floor']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _notes(stored)])


def _notes(stored: StoredKernels) -> str:
    place, rates, calls = stored["environment"], stored["rates"], stored["four_calls"]
    machine = machine_of(place)
    share = ""
    if "prefill_seconds" in calls:
        share = f": {calls['kernels_share']:.2%} of the stored prefill of {calls['prefill_seconds']:.3g} s"
    batches = stored["growth_by_batch"]
    parts = [
        f"Medians of {stored['vic'][0]['seconds']['kernel']['repeats']} interleaved rounds on {machine}, "
        f"torch {place['packages']['torch']}; `vic` of features 1024 wide.",
        f"Rates in the same run: {rates['copy_bytes'] / 1e9:.3g} GB/s of copying, "
        f"{rates['float64_operations'] / 1e9:.3g} GFLOP/s in float64, "
        f"{rates['float32_operations'] / 1e9:.3g} in float32.",
        f"Peak of `vic` at {stored['peak_of_vic']['tokens']} tokens: "
        f"{stored['peak_of_vic']['matrices_of_floats']:.2f} n × n floats.",
        f"The four calls of a LLaVA-1.5-7B prefill at 64 tokens: {_milliseconds(calls['seconds']['kernels'])}{share}.",
        f"{batches[-1]['batch']} rows of {batches[-1]['tokens']} tokens cost {batches[-1]['over_one']:.3g} times one.",
    ]
    if "exponent" in (law := stored["growth_by_tokens"]):
        parts.append(f"From {law['from_tokens']:.0f} tokens on the time grows as n to the {law['exponent']:.2f}.")
    return " ".join([*parts, f"`{stored['command']}`."])


def registers_table(stored: StoredRegisters) -> str:
    """Return what ptxas says that each kernel takes, by architecture."""
    kinds = sorted({entry["architecture"] for entry in stored["kernels"]}, key=lambda kind: int(kind[3:]))
    found = {(entry["kernel"], entry["architecture"]): entry for entry in stored["kernels"]}
    lines = [f"| kernel | {' | '.join(kinds)} | shared memory |", "|---|" + "---|" * (len(kinds) + 1)]
    for kernel in dict.fromkeys(entry["kernel"] for entry in stored["kernels"]):
        numbers = [str(found[kernel, kind]["registers"]) for kind in kinds]
        shared = max(found[kernel, kind]["shared_bytes"] for kind in kinds)
        lines.append(f"| `{kernel}` | {' | '.join(numbers)} | {shared} B |")
    spills = sum(entry["spill_stores"] + entry["spill_loads"] for entry in stored["kernels"])
    return "\n".join([*lines, "", f"Registers a thread, by nvcc {stored['nvcc']}; bytes spilled: {spills}."])


def draw_growth(stored: StoredKernels, target: Path) -> None:
    """Time by tokens with the fitted power law, and time by rows beside what as many single calls would take."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    tokens = [row["tokens"] for row in stored["vic"]]
    for name in ("kernel", "reference", "product, float64", "product, float32"):
        milliseconds = [1e3 * row["seconds"][name]["median"] for row in stored["vic"]]
        left.loglog(tokens, milliseconds, marker="o", label=name, linewidth=2.5 if name == "kernel" else 1.2)
    rows = [row for row in stored["broadcast"] if "seconds" in row]
    broadcast = [1e3 * row["seconds"]["broadcast"]["median"] for row in rows]
    left.loglog([row["tokens"] for row in rows], broadcast, marker="o", label="broadcast")
    if "exponent" in (law := stored["growth_by_tokens"]):
        fitted = [1e3 * law["factor"] * n ** law["exponent"] for n in tokens]
        left.loglog(tokens, fitted, "k--", linewidth=1, label=f"$n^{{{law['exponent']:.2f}}}$")
    left.set(xlabel="tokens", ylabel="ms", title="vic, one row")
    left.set_xticks(tokens, labels=map(str, tokens))
    left.minorticks_off()
    batches = [row["batch"] for row in stored["growth_by_batch"]]
    right.plot(batches, [row["over_one"] for row in stored["growth_by_batch"]], marker="o", label="kernel")
    right.plot(batches, batches, "k--", linewidth=1, label="one call a row")
    right.set(xlabel="rows", ylabel="times one row", title=f"vic, {stored['growth_by_batch'][0]['tokens']} tokens")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with write_whole(target) as stream:
        figure.savefig(stream, format="png", dpi=120)
