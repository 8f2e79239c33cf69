"""Bad arguments are Python errors that name the argument, also for callers of torch.ops; never a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_backends import Backend
from kernel_cases import CASES, OPERATORS
from kernel_inputs import moved

from vitcop_core import ops

F, L = torch.rand(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64)
P, W = torch.rand(2, 4, 2), torch.rand(2, 4)
K, Q = torch.rand(2, 3, 4, 8), torch.rand(2, 3, 8)
ROW, HALF = torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int32)
HUGE = 2**40
CUTOFFS = "cutoffs|cutoff_distance"

# Operator, arguments, and the name that the error must have.
BAD: list[tuple[str, tuple[Any, ...], str]] = [
    ("top_tokens", (L, 1), "saliency"),
    ("top_tokens", (W[0], 1), "saliency"),
    ("top_tokens", (W, 0), "k"),
    ("top_tokens", (W, 5), "k"),
    ("top_tokens", (W, -1), "k"),
    ("top_tokens", (W, HUGE), "k"),
    ("top_tokens", (W, 1, False, HALF), "lengths"),
    ("top_tokens", (W, 1, False, ROW[:1]), "lengths"),
    ("top_tokens", (W, 1, False, None, ROW[:, None]), "counts"),
    ("key_norm", (F,), "keys"),
    ("key_norm", (K.long(),), "keys"),
    ("key_norm", (K.to(torch.complex64),), "keys"),
    ("cls_saliency", (Q, F, 1.0), "keys"),
    ("cls_saliency", (Q[:1], K, 1.0), "query_cls"),
    ("cls_saliency", (Q[..., :7], K, 1.0), "query_cls"),
    ("cls_saliency", (Q.long(), K, 1.0), "query_cls"),
    ("received_attention", (K, F, 1.0), "keys"),
    ("received_attention", (K[:, :2], K, 1.0), "queries"),
    ("received_attention", (K[..., :7], K, 1.0), "queries"),
    ("received_attention", (K.long(), K, 1.0), "queries"),
    ("received_attention", (K, K, 1.0, ROW[:1]), "lengths"),
    ("vic", (W, P, 2), "features"),
    ("vic", (L[..., None], P, 2), "features"),
    ("vic", (F, F, 2), "positions"),
    ("vic", (F, P[:1], 2), "positions"),
    ("vic", (F, P.long(), 2), "positions"),
    ("vic", (F, P, 0), "num_centers"),
    ("vic", (F, P, 5), "num_centers"),
    ("vic", (F, P, 2, 8.0, 0.6, W[:, 0]), "lengths"),
    ("vic", (F, P, 2, 8.0, 0.6, None, L), "counts"),
    ("vic", (F, P, 2, 8.0, 0.6, None, None, ROW), CUTOFFS),
    ("vic", (F, P, 2, 8.0, 0.6, None, None, W), CUTOFFS),
    ("vic", (F, P, 2, 8.0, 0.6, None, None, W[:1, 0]), CUTOFFS),
    ("co_prune", (L, L, W, 2, 1), "hidden"),
    ("co_prune", (W, L, W, 2, 1), "hidden"),
    ("co_prune", (F, W, W, 2, 1), "labels"),
    ("co_prune", (F, L[:, :3], W, 2, 1), "labels"),
    ("co_prune", (F, L, W[:, :3], 2, 1), "key_norm"),
    ("co_prune", (F, L, L, 2, 1), "key_norm"),
    ("co_prune", (F, L, W, 0, 1), "budget"),
    ("co_prune", (F, L, W, -3, 1), "budget"),
    ("co_prune", (F, L, W, 2, 0), "num_clusters"),
    ("co_prune", (F, L, W, 2, 1, ROW[:1]), "lengths"),
    ("co_prune", (F, L, W, 2, 1, None, W[:, 0]), "counts"),
    ("gather_tokens", ([], L), "tensors"),
    ("gather_tokens", ([W], W), "index"),
    ("gather_tokens", ([W], L[0]), "index"),
    ("gather_tokens", ([W[0]], L), "tensors"),
    ("gather_tokens", ([torch.rand(3, 4)], L), "tensors"),
    ("gather_tokens", ([W, W[:, :3]], L), "tensors"),
]
IDS = [f"{op}-{name}-{place}" for place, (op, _, name) in enumerate(BAD)]


@pytest.mark.parametrize(("op", "arguments", "name"), BAD, ids=IDS)
def test_bad_arguments_of_an_operator_are_named(
    backend: Backend, op: str, arguments: tuple[Any, ...], name: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        backend.run(op, arguments)


def _named(op: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(ops, op)
    plain = {"vic": 3, "top_tokens": 2, "co_prune": 5, "received_attention": 3}.get(op)
    if plain is None:
        return function
    names = ("cutoff_distance", "spatial_threshold") if op == "vic" else ("smallest",) if op == "top_tokens" else ()
    # What comes last for the operator is another kind of cutoff distance for the function.
    keywords = (*names, "lengths", "counts", "cutoff_distance")
    return lambda *given: function(*given[:plain], **dict(zip(keywords, given[plain:], strict=False)))


@pytest.mark.parametrize(("op", "arguments", "name"), BAD, ids=IDS)
def test_bad_arguments_of_a_function_are_named(
    kernels: Backend, op: str, arguments: tuple[Any, ...], name: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        _named(op)(*(moved(argument, kernels.device) for argument in arguments))


OTHER_DEVICE: list[tuple[str, tuple[Any, ...], str]] = [
    ("cls_saliency", (Q.to("meta"), K, 1.0), "query_cls"),
    ("received_attention", (K.to("meta"), K, 1.0), "queries"),
    ("received_attention", (K, K, 1.0, ROW.to("meta")), "lengths"),
    ("top_tokens", (W, 1, False, ROW.to("meta")), "lengths"),
    ("vic", (F, P.to("meta"), 2), "positions"),
    ("vic", (F, P, 2, 8.0, 0.6, None, ROW.to("meta")), "counts"),
    ("co_prune", (F, L.to("meta"), W, 2, 1), "labels"),
    ("co_prune", (F, L, W.to("meta"), 2, 1), "key_norm"),
    ("gather_tokens", ([W, W.to("meta")], L), "tensors"),
]


@pytest.mark.parametrize(
    ("op", "arguments", "name"), OTHER_DEVICE, ids=[f"{op}-{name}" for op, _, name in OTHER_DEVICE]
)
def test_arguments_on_two_devices_are_refused(kernels: Backend, op: str, arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        _named(op)(*(moved(argument, kernels.device) for argument in arguments))


@pytest.mark.parametrize("op", OPERATORS)
def test_arguments_on_the_gpu_and_on_the_cpu_are_refused(kernels: Backend, op: str) -> None:
    if kernels.device == "cpu":
        pytest.skip("needs two devices with kernels")
    arguments = next(case for case in CASES if case.op == op).arguments(torch.float32)
    if op in ("key_norm", "top_tokens"):
        pytest.skip("has one tensor")
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        getattr(torch.ops.vitcop, op)(moved(arguments[0], "cuda"), *arguments[1:])


@pytest.mark.parametrize("op", OPERATORS)
def test_batch_of_no_rows_gives_no_rows(backend: Backend, op: str) -> None:
    case = next(case for case in CASES if case.op == op)
    arguments = [_no_rows(argument) for argument in case.arguments(torch.float32)]
    assert all(part.shape[0] == 0 for part in backend.run(op, arguments))


def _no_rows(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_no_rows(part) for part in argument]
    return argument[:0] if isinstance(argument, torch.Tensor) else argument
