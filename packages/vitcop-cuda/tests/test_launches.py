"""Which kernels an operator launches, as the host's launcher lists them: a GPU would be given the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_backends import Backend, load_host_operators
from kernel_cases import CASES, OPERATORS

MOST_LAUNCHES = 12  # of the seven operators together


@pytest.fixture
def launches(device_lines: tuple[Backend, Backend], request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    host = load_host_operators(sanitize=request.config.getoption("--sanitize") is not None)

    def of_call(op: str, arguments: list[Any]) -> list[str]:
        host.launched()
        device_lines[0].run(op, arguments)
        names: list[str] = host.launched()
        return names

    return of_call


def changed(argument: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(argument, list):
        return [change(part) for part in argument]
    return change(argument) if isinstance(argument, torch.Tensor) else argument


@pytest.mark.parametrize("op", OPERATORS)
def test_launches_depend_neither_on_values_nor_on_rows(launches: Callable[..., list[str]], op: str) -> None:
    arguments = next(case for case in CASES if case.op == op).arguments(torch.float32)
    names = launches(op, list(arguments))
    assert names
    assert names == launches(op, [changed(argument, torch.zeros_like) for argument in arguments])
    assert names == launches(op, [changed(argument, lambda part: torch.cat([part] * 3)) for argument in arguments])


def test_operators_take_few_launches(launches: Callable[..., list[str]]) -> None:
    once = {op: next(case for case in CASES if case.op == op).arguments(torch.float32) for op in OPERATORS}
    counts = {op: len(launches(op, list(arguments))) for op, arguments in once.items()}
    assert sum(counts.values()) <= MOST_LAUNCHES, counts
