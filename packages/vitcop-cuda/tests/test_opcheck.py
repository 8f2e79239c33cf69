"""What torch asks of an operator: schema, fake, autograd and tracing, with the kernels in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_backends import Backend, assert_close, assert_identical, listed, reference
from kernel_cases import CASES, OPERATORS
from kernel_inputs import Case, Draw, moved, rows
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vitcop_core import ops

CHECKED = [case for case in CASES if not case.is_large and not case.name.startswith("golden")]
IDS = [f"{case.op}-{case.name}" for case in CHECKED]
FIRST = {op: next(case for case in CASES if case.op == op) for op in OPERATORS}


def arguments_on(backend: Backend, case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return tuple(moved(argument, backend.device) for argument in case.arguments(dtype))


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_operator_passes_opcheck(kernels: Backend, op: str, dtype: torch.dtype) -> None:
    arguments = arguments_on(kernels, FIRST[op], dtype)
    if op == "co_prune":
        arguments[0].requires_grad_()
    torch.library.opcheck(getattr(torch.ops.vitcop, op).default, arguments)


@pytest.mark.parametrize("op", ["received_attention", "top_tokens", "vic", "co_prune"])
def test_ragged_operator_passes_opcheck(kernels: Backend, op: str) -> None:
    (case,) = (case for case in CASES if case.op == op and case.name in ("ragged", "ragged, largest"))
    torch.library.opcheck(getattr(torch.ops.vitcop, op).default, arguments_on(kernels, case))


@pytest.mark.parametrize("case", CHECKED, ids=IDS)
def test_fake_results_have_the_shapes_and_strides_of_real_ones(kernels: Backend, case: Case) -> None:
    function = getattr(torch.ops.vitcop, case.op)
    arguments = arguments_on(kernels, case, case.dtypes[0])
    real = function(*arguments)
    with FakeTensorMode() as mode:
        faked = (_faked(argument, mode) for argument in arguments)
        fake = function(*faked)
    pairs = zip(*([result] if isinstance(result, Tensor) else result for result in (real, fake)), strict=True)
    for mine, theirs in pairs:
        assert (mine.shape, mine.dtype, mine.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        assert mine.device == theirs.device


def _faked(argument: Any, mode: FakeTensorMode) -> Any:
    if isinstance(argument, list):
        return [_faked(part, mode) for part in argument]
    return mode.from_tensor(argument) if isinstance(argument, Tensor) else argument


@pytest.mark.parametrize("op", OPERATORS)
def test_operator_is_traced_whole(kernels: Backend, op: str) -> None:
    arguments = arguments_on(kernels, FIRST[op])
    function = getattr(torch.ops.vitcop, op)
    compiled = torch.compile(lambda *given: function(*given), backend="aot_eager", fullgraph=True)
    assert_identical(listed(compiled(*arguments)), listed(function(*arguments)))


def test_gradient_of_co_prune_is_the_references(kernels: Backend) -> None:
    draw = Draw(5, torch.float64)
    hidden, labels, norms = draw.normal(3, 11, 4), draw.integers(4, 3, 11), draw.uniform(3, 11)
    rest = [moved(part, kernels.device) for part in (labels, norms, 5, 4, rows(11, 6, 0), rows(5, 3, 2))]
    states = hidden.to(kernels.device).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: torch.ops.vitcop.co_prune(given, *rest)[0], (states,))
    upstream = draw.normal(3, 5, 4).to(kernels.device)
    (found,) = torch.autograd.grad(torch.ops.vitcop.co_prune(states, *rest)[0], states, upstream)
    slot = torch.ops.vitcop.co_prune(states, *rest)[3].unsqueeze(2).expand(-1, -1, 4)
    sizes = torch.zeros(3, 6, 4, device=kernels.device, dtype=torch.float64).scatter_add(
        1, slot, torch.ones_like(states)
    )
    expected = torch.cat([upstream, torch.zeros_like(upstream[:, :1])], 1).div(sizes.clamp(min=1)).gather(1, slot)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared", [1, 3], ids=["one row for all", "a row each"])
def test_gradient_of_gather_tokens_passes_gradcheck(kernels: Backend, shared: int) -> None:
    draw = Draw(6, torch.float64)
    index = draw.integers(14, 3, 5).sub(2).to(kernels.device)
    first = draw.normal(shared, 11, 4).to(kernels.device).requires_grad_()
    second = draw.normal(3, 11).to(kernels.device).requires_grad_()
    places = draw.integers(9, 3, 11).to(kernels.device)

    def gathered(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.vitcop.gather_tokens([*given, places], index)[:2])

    assert torch.autograd.gradcheck(gathered, (first, second))


def test_public_functions_run_on_the_kernels(kernels: Backend) -> None:
    case = FIRST["vic"]
    features, positions, count = arguments_on(kernels, case)
    found = ops.vic(features, positions, count)
    assert_close("vic", listed(found), reference("vic", case.arguments(torch.float32)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        ops.vic(features, positions, count)
    names = {event.key for event in profile.key_averages()}
    assert "vitcop::vic" in names
    assert "aten::argsort" not in names  # which the reference calls
