"""What only a GPU can show: graph capture, no waiting, few launches, few bytes. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel_backends import BACKENDS, Backend, assert_close, assert_identical, listed, reference
from kernel_cases import CASES, OPERATORS
from kernel_inputs import Case, moved
from torch import Tensor

# One case with rows of different lengths where the operator takes such, and one large one.
CHOSEN = [
    *(case for case in CASES if case.is_large),
    *(next(case for case in CASES if case.op == op) for op in OPERATORS),
    *(case for case in CASES if case.name in ("ragged", "ragged, largest")),
]
chosen = pytest.mark.parametrize("case", CHOSEN, ids=lambda case: f"{case.op}-{case.name}")
MOST_LAUNCHES = 20


@pytest.fixture
def cuda(make_ready: Any) -> Backend:
    backend: Backend = make_ready(BACKENDS[3])
    return backend


@pytest.fixture
def never_waits() -> Iterator[Callable[[], None]]:
    """Makes torch raise where the host would wait for the GPU, from when it is called on: inputs are copied before."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def on_cuda(case: Case) -> tuple[Any, ...]:
    return tuple(moved(argument, "cuda") for argument in case.arguments(case.dtypes[0]))


def call(case: Case, arguments: tuple[Any, ...]) -> list[Tensor]:
    result = getattr(torch.ops.vitcop, case.op)(*arguments)
    return [result] if isinstance(result, Tensor) else list(result)


def _flat(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, list):
            yield from argument
        elif isinstance(argument, Tensor):
            yield argument


def emptied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Zeros of the same shapes, to write to: none is a view that repeats its numbers."""
    room = tuple(
        [p.clone() for p in a] if isinstance(a, list) else a.clone() if isinstance(a, Tensor) else a for a in arguments
    )
    for part in _flat(room):
        part.zero_()
    return room


@chosen
def test_replayed_graph_computes_anew(cuda: Backend, case: Case) -> None:
    given = on_cuda(case)
    captured = emptied(given)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(case, captured)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(case, captured)
    for target, source in zip(_flat(captured), _flat(given), strict=True):
        target.copy_(source)
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert_close(case.op, listed(results), reference(case.op, case.arguments(case.dtypes[0])))


@chosen
def test_operator_never_waits(cuda: Backend, case: Case, never_waits: Callable[[], None]) -> None:
    given = on_cuda(case)
    never_waits()
    call(case, given)


def test_a_wait_is_noticed(cuda: Backend, never_waits: Callable[[], None]) -> None:
    value = torch.ones(1, device="cuda")
    never_waits()
    with pytest.raises(RuntimeError, match="synchronizing"):
        value.item()


@pytest.mark.parametrize("op", OPERATORS)
def test_stream_of_the_caller_is_used(cuda: Backend, op: str) -> None:
    case = next(case for case in CASES if case.op == op)
    given = on_cuda(case)
    expected = listed(call(case, given))
    room, side = emptied(given), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        # The inputs arrive behind a pause on this stream: a kernel on another one would find zeros.
        torch.cuda._sleep(100_000_000)
        for target, source in zip(_flat(room), _flat(given), strict=True):
            target.copy_(source)
        late = call(case, room)
    side.synchronize()
    assert_identical(listed(late), expected)


def test_one_prefill_takes_few_launches_and_no_wait(cuda: Backend) -> None:
    from vitcop_cuda.bench.formulations import FourCalls

    calls = FourCalls("cuda", 0)
    calls.kernels()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        calls.kernels()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type.name == "CUDA"]
    launched = [name for name in names if not name.startswith("aten::")]
    print(f"{len(launched)} launches:", *launched, sep="\n  ")
    assert 0 < len(launched) < MOST_LAUNCHES


def test_vic_takes_less_than_three_matrices_of_floats(cuda: Backend) -> None:
    from vitcop_cuda.bench.memory import peak_of_vic

    peak = peak_of_vic(2880, "cuda")
    assert 2880 * 2880 < peak < 3 * 2880 * 2880 * 4, f"{peak / 2880**2 / 4:.2f} n x n floats"


def test_same_bits_on_every_run(cuda: Backend) -> None:
    for case in CHOSEN:
        given = on_cuda(case)
        first = listed(call(case, given))
        for _ in range(5):
            assert_identical(listed(call(case, given)), first)
