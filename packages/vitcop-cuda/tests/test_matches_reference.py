"""Every operator on every backend against the reference: integers exactly, floats by a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_backends import Backend, assert_close, assert_identical, reference
from kernel_cases import CASES, OPERATORS
from kernel_inputs import FLOATS, Case, Draw, in_cache, misaligned, rows, strided
from torch import Tensor

from vitcop_core import ops

CALLS = [
    pytest.param(case, dtype, id=f"{case.op}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for case in CASES
    for dtype in case.dtypes
]
NAN, INF = float("nan"), float("inf")


def test_every_operator_has_cases() -> None:
    assert {case.op for case in CASES} == set(ops.REFERENCES) == set(OPERATORS)
    assert len({(case.op, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("case", "dtype"), CALLS)
def test_backend_matches_the_reference(
    backend: Backend, case: Case, dtype: torch.dtype, pytestconfig: pytest.Config
) -> None:
    if case.is_large and (
        backend.name == "threads" or (backend.name == "lines" and pytestconfig.getoption("sanitize"))
    ):
        pytest.skip("too large for threads that wait at real barriers, or for a sanitizer")
    arguments = case.arguments(dtype)
    assert_close(case.op, backend.run(case.op, arguments), reference(case.op, arguments))


@pytest.mark.parametrize(("case", "dtype"), [call for call in CALLS if not call.values[0].is_large])  # type: ignore[union-attr]
def test_device_lines_give_the_same_bits_for_any_launch(
    device_lines: tuple[Backend, Backend], case: Case, dtype: torch.dtype
) -> None:
    arguments = case.arguments(dtype)
    one, several = (backend.run(case.op, arguments) for backend in device_lines)
    assert_identical(one, several)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_kernel_gives_the_same_bits_again(kernels: Backend, case: Case) -> None:
    arguments = case.arguments(case.dtypes[0])
    first = kernels.run(case.op, arguments)
    assert_identical(kernels.run(case.op, arguments), first)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):  # named, because the process may have one alone
            torch.set_num_threads(threads)
            assert_identical(kernels.run(case.op, arguments), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bits_do_not_depend_on_where_keys_lie(backend: Backend, dtype: torch.dtype) -> None:
    draw = Draw(3, dtype)
    query, queries, keys = draw.normal(2, 3, 16), draw.normal(2, 3, 29, 16), draw.normal(2, 3, 29, 16)
    calls: dict[str, Callable[[Tensor], tuple[Any, ...]]] = {
        "key_norm": lambda keys: (keys,),
        "cls_saliency": lambda keys: (query, keys, 0.35),
        "received_attention": lambda keys: (queries, keys, 0.35),
    }
    for op, call in calls.items():
        expected = backend.run(op, call(keys))
        for lay_out in (misaligned, strided, in_cache):
            assert_identical(backend.run(op, call(lay_out(keys))), expected)


def _unfit() -> list[tuple[str, str, tuple[Any, ...]]]:
    draw = Draw(0, torch.float32)
    hidden, norms, labels = draw.normal(3, 9, 4), draw.uniform(3, 9), draw.integers(4, 3, 9)
    beyond, below = rows(9, 10, 2**40), rows(-1, 3, -(2**40))
    wild = torch.where(draw.uniform(3, 9) < 0.3, draw.integers(9, 3, 9) * 2**33 - 2**35, labels)
    found: list[tuple[str, str, tuple[Any, ...]]] = [("co_prune", "labels", (hidden, wild, norms, 5, 4))]
    for numbers in (beyond, below):
        for name, pair in (("lengths", (numbers, None)), ("counts", (None, numbers))):
            found.append(("top_tokens", name, (norms, 5, False, *pair)))
            if name == "lengths":
                found.append(("received_attention", name, (hidden[:, None], hidden[:, None], 0.35, pair[0])))
            found.append(("vic", name, (hidden, norms[..., None].expand(-1, -1, 2), 5, 8.0, 0.6, *pair)))
            found.append(("co_prune", name, (hidden, labels, norms, 5, 4, *pair)))
    return found


@pytest.mark.parametrize(("op", "name", "arguments"), _unfit())
def test_values_that_do_not_fit_are_refused_or_cut(
    backend: Backend, op: str, name: str, arguments: tuple[Any, ...]
) -> None:
    if backend.refuses_values:
        with pytest.raises(ValueError, match=name):
            backend.run(op, arguments)
    else:
        assert_close(op, backend.run(op, arguments), reference(op, arguments))


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e38], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_vic_of_features_that_are_no_numbers_is_defined(backend: Backend, value: float, share: float) -> None:
    draw = Draw(1, torch.float32)
    features = draw.normal(3, 40, 5).masked_fill(draw.uniform(3, 40, 5) < share, value)
    arguments = (features, draw.uniform(3, 40, 2), 6, 8.0, 0.3, rows(40, 7, 1))
    labels, centers, *rest = backend.run("vic", arguments)
    for row, (length, count) in enumerate(((40, 6), (7, 6), (1, 1))):
        assert (labels[row, length:] == -1).all()
        assert ((labels[row, :length] >= 0) & (labels[row, :length] < count)).all()
        assert sorted(set(centers[row, :count].tolist())) == sorted(centers[row, :count].tolist())
        assert ((centers[row, :count] >= 0) & (centers[row, :count] < length)).all()
        assert labels[row, centers[row, :count]].tolist() == list(range(count))
        assert (centers[row, count:] == 40).all()
    assert_identical(backend.run("vic", arguments), [labels, centers, *rest])


def test_saliency_of_scores_that_are_no_numbers_stays_in_its_row(backend: Backend) -> None:
    draw = Draw(2, torch.float32)
    query, keys = draw.normal(2, 3, 8), draw.normal(2, 3, 9, 8)
    clean = reference("cls_saliency", (query, keys, 1.0))[0]
    keys[0, 0, 4, 1] = NAN
    (found,) = backend.run("cls_saliency", (query, keys, 1.0))
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], clean[1], rtol=2e-5, atol=0)


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["queries", "keys"])
def test_received_attention_of_what_is_no_number_stays_in_its_row(backend: Backend, where: str, value: float) -> None:
    draw = Draw(2, torch.float32)
    given = {"queries": draw.normal(2, 3, 70, 8), "keys": draw.normal(2, 3, 70, 8)}
    clean = reference("received_attention", (*given.values(), 1.0))[0]
    given[where][0, 0, 4, 1] = value
    (found,) = backend.run("received_attention", (*given.values(), 1.0))
    (wanted,) = reference("received_attention", (*given.values(), 1.0))
    torch.testing.assert_close(found[0], wanted[0], rtol=2e-5, atol=0, equal_nan=True)
    assert found[0].isnan().any()
    torch.testing.assert_close(found[1], clean[1], rtol=2e-5, atol=0)
