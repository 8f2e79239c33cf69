"""The shape of a stored result, as `json` reads it back. What is final is told apart by its keys."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, final

from vitcop_core.environment import Environment


class StoredTimes(TypedDict):
    """Seconds of one call; see `vitcop_cuda.bench.timing.Times`."""

    median: float
    low: float
    high: float
    repeats: int


class Rates(TypedDict):
    """What the machine does in a second: bytes copied, read and written, and operations of products."""

    copy_bytes: float
    float32_operations: float
    float64_operations: float


class VicRow(TypedDict):
    """Kernel, reference and product alone at one number of tokens; the floors are seconds."""

    tokens: int
    seconds: dict[str, StoredTimes]
    reference_over_kernel: float
    kernel_over_product: float
    floor_of_operations: float
    floor_of_bytes: float
    kernel_over_floor: float


@final
class SkippedRow(TypedDict):
    """A number of tokens at which the broadcast formulation was not run, and why."""

    tokens: int
    skipped: str


@final
class BroadcastRow(TypedDict):
    """The broadcast formulation beside the kernel, and the bytes that it holds at once."""

    tokens: int
    bytes: int
    seconds: dict[str, StoredTimes]
    broadcast_over_kernel: float


class Peak(TypedDict):
    """The most memory that ``vic`` takes."""

    tokens: int
    bytes: int
    matrices_of_floats: float


class FourCallsRow(TypedDict):
    """The calls of a prefill; their shares of a stored one, where one was given."""

    seconds: dict[str, StoredTimes]
    references_over_kernels: float
    prefill: NotRequired[str]
    prefill_seconds: NotRequired[float]
    kernels_share: NotRequired[float]
    references_share: NotRequired[float]
    kernels_share_of_busy: NotRequired[float]


@final
class PowerLaw(TypedDict):
    """``seconds = factor * n ** exponent``, from ``from_tokens`` on."""

    exponent: float
    factor: float
    from_tokens: float


@final
class NoLaw(TypedDict):
    """Too few points for a fit."""


class BatchRow(TypedDict):
    """The kernel on some rows."""

    batch: int
    tokens: int
    seconds: StoredTimes
    over_one: float


class KernelMeasurements(TypedDict):
    """What one run measures."""

    environment: Environment
    kernels_built_with: dict[str, Any]
    rates: Rates
    vic: list[VicRow]
    broadcast: list[BroadcastRow | SkippedRow]
    peak_of_vic: Peak
    four_calls: FourCallsRow
    growth_by_tokens: PowerLaw | NoLaw
    growth_by_batch: list[BatchRow]


class StoredKernels(KernelMeasurements):
    """The whole file."""

    command: str


class RegisterRow(TypedDict):
    """What ptxas says of a kernel for one architecture."""

    kernel: str
    architecture: str
    shared_bytes: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int
    registers: int


class StoredRegisters(TypedDict):
    """What ptxas says of all kernels."""

    command: str
    nvcc: str
    flags: list[str]
    kernels: list[RegisterRow]
