"""Random calls against the reference, and what must hold for every call: rows are alone, padding is never read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_backends import BACKENDS, Backend, assert_close, assert_identical, reference
from kernel_inputs import Draw, in_cache, strided
from torch import Tensor

NAN = float("nan")
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
LAYOUTS: list[Callable[[Tensor], Tensor]] = [in_cache, strided, torch.clone]
# One backend serves all examples of a test: it holds no state.
random_calls = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def ragged(draw: st.DrawFn, batch: int, tokens: int, most: int) -> tuple[Tensor | None, Tensor | None]:
    """Lengths and counts that fit, or None."""
    lengths = draw(st.none() | st.lists(st.integers(0, tokens), min_size=batch, max_size=batch))
    counts = draw(st.none() | st.lists(st.integers(0, most), min_size=batch, max_size=batch))
    return tuple(None if part is None else torch.tensor(part) for part in (lengths, counts))  # type: ignore[return-value]


@st.composite
def vic_calls(draw: st.DrawFn) -> tuple[Any, ...]:
    make = Draw(draw(st.integers(0, 2**31)), draw(DTYPES))
    batch, tokens, width = draw(st.integers(1, 3)), draw(st.integers(1, 80)), draw(st.integers(1, 5))
    kinds = (make.normal(batch, tokens, width, scale=4), make.lattice(batch, tokens, width, steps=1))
    features = draw(st.sampled_from(kinds))
    positions = draw(st.sampled_from([make.grid(batch, 9, tokens), make.uniform(batch, tokens, 2)]))
    centers = draw(st.integers(1, tokens))
    thresholds = draw(st.sampled_from([1e-6, 1.0, 8.0])), draw(st.sampled_from([1e-9, 1 / 9, 0.3, 0.6, 2.0]))
    return strided(features), positions, centers, *thresholds, *draw(ragged(batch, tokens, centers))


@st.composite
def co_prune_calls(draw: st.DrawFn) -> tuple[Any, ...]:
    make = Draw(draw(st.integers(0, 2**31)), draw(DTYPES))
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 60))
    clusters, skew = draw(st.integers(1, tokens + 2)), draw(st.sampled_from([0.3, 1.0, 5.0]))
    labels = (clusters * make.uniform(batch, tokens) ** skew).long().clamp(max=clusters - 1)
    norms = draw(st.sampled_from([make.lattice(batch, tokens, steps=1).float(), make.uniform(batch, tokens)]))
    norms = norms.masked_fill(make.uniform(batch, tokens) < draw(st.sampled_from([0, 0.2])), NAN)
    budget = draw(st.integers(1, tokens + 2))
    return make.normal(batch, tokens, 3), labels, norms, budget, clusters, *draw(ragged(batch, tokens, budget))


@st.composite
def top_calls(draw: st.DrawFn) -> tuple[Any, ...]:
    make = Draw(draw(st.integers(0, 2**31)), draw(DTYPES))
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 600))
    k = draw(st.integers(1, tokens))
    values = draw(st.sampled_from([make.lattice(batch, tokens), make.normal(batch, tokens)]))
    return strided(values), k, draw(st.booleans()), *draw(ragged(batch, tokens, k))


@st.composite
def attention_calls(draw: st.DrawFn) -> tuple[Any, ...]:
    make = Draw(draw(st.integers(0, 2**31)), draw(DTYPES))
    batch, heads, tokens, width = (draw(st.integers(1, most)) for most in (3, 5, 300, 40))
    keys = draw(st.sampled_from(LAYOUTS))(make.normal(batch, heads, tokens, width))
    return make.normal(batch, heads, width), keys, draw(st.sampled_from([0.05, 1.0, -1.0]))


@st.composite
def received_calls(draw: st.DrawFn) -> tuple[Any, ...]:
    make = Draw(draw(st.integers(0, 2**31)), draw(DTYPES))
    batch, heads, tokens, width = (draw(st.integers(1, most)) for most in (3, 3, 140, 40))
    queries, keys = (draw(st.sampled_from(LAYOUTS))(make.normal(batch, heads, tokens, width)) for _ in range(2))
    return queries, keys, draw(st.sampled_from([0.05, 1.0, -1.0])), draw(ragged(batch, tokens, 1))[0]


@random_calls
@given(call=received_calls())
def test_received_attention_matches_the_reference_and_its_rows(backend: Backend, call: tuple[Any, ...]) -> None:
    (found,) = backend.run("received_attention", call)
    assert_close("received_attention", [found], reference("received_attention", call))
    queries, keys, scale, lengths = call
    for row in range(len(queries)):
        length = queries.shape[2] if lengths is None else int(lengths[row])
        own = slice(row, row + 1), slice(None), slice(length)
        (alone,) = backend.run("received_attention", (queries[own], keys[own], scale))
        assert_close("received_attention", [found[row : row + 1, :length].contiguous()], [alone])
        assert not found[row, length:].any()


@random_calls
@given(call=vic_calls())
def test_vic_matches_the_reference(backend: Backend, call: tuple[Any, ...]) -> None:
    assert_close("vic", backend.run("vic", call), reference("vic", call))


@random_calls
@given(call=co_prune_calls())
def test_co_prune_matches_the_reference(backend: Backend, call: tuple[Any, ...]) -> None:
    found = backend.run("co_prune", call)
    assert_close("co_prune", found, reference("co_prune", call))


@random_calls
@given(call=top_calls())
def test_top_tokens_matches_the_reference(backend: Backend, call: tuple[Any, ...]) -> None:
    assert_close("top_tokens", backend.run("top_tokens", call), reference("top_tokens", call))


@random_calls
@given(call=attention_calls())
def test_attention_and_norms_match_the_reference(backend: Backend, call: tuple[Any, ...]) -> None:
    assert_close("cls_saliency", backend.run("cls_saliency", call), reference("cls_saliency", call))
    assert_close("key_norm", backend.run("key_norm", call[1:2]), reference("key_norm", call[1:2]))


@random_calls
@given(call=vic_calls() | co_prune_calls())
def test_device_lines_give_the_same_bits_for_any_launch(
    device_lines: tuple[Backend, Backend], call: tuple[Any, ...]
) -> None:
    op = "co_prune" if isinstance(call[1], Tensor) and call[1].dtype == torch.int64 else "vic"
    one, several = (backend.run(op, call) for backend in device_lines)
    assert_identical(one, several)


def _row(argument: Any, row: int, batch: int) -> Any:
    return argument[row : row + 1] if isinstance(argument, Tensor) and argument.shape[0] == batch else argument


@random_calls
@given(call=vic_calls() | co_prune_calls() | top_calls())
def test_row_of_a_batch_is_the_row_alone(backend: Backend, call: tuple[Any, ...]) -> None:
    op = {5: "top_tokens"}.get(len(call)) or ("co_prune" if call[1].dtype == torch.int64 else "vic")
    together = backend.run(op, call)
    batch = call[0].shape[0]
    for row in range(batch):
        alone = backend.run(op, tuple(_row(argument, row, batch) for argument in call))
        # Not the last bit: how a library's matrix product adds up may depend on the size of the batch.
        assert_close(op, [part[row : row + 1].contiguous() for part in together], alone)


@random_calls
@given(call=vic_calls() | co_prune_calls() | top_calls(), value=st.sampled_from([NAN, float("inf"), 7.0]))
def test_padding_is_never_read(backend: Backend, call: tuple[Any, ...], value: float) -> None:
    *front, lengths, counts = call
    if lengths is None:
        return
    op = {5: "top_tokens"}.get(len(call)) or ("co_prune" if call[1].dtype == torch.int64 else "vic")
    padding = torch.arange(front[0].shape[1]) >= lengths.unsqueeze(1)
    spoiled = [_spoiled(argument, padding, value) for argument in front]
    assert_identical(backend.run(op, (*spoiled, lengths, counts)), backend.run(op, call))


def _spoiled(argument: Any, padding: Tensor, value: float) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    where = padding.view(*padding.shape, *[1] * (argument.dim() - 2))
    return argument.masked_fill(where, value if argument.is_floating_point() else -(2**40))


@pytest.mark.parametrize("seed", range(5))
def test_order_of_tokens_does_not_change_which_belong_together(backend: Backend, seed: int) -> None:
    draw = Draw(seed, torch.float32)
    features, positions = draw.normal(1, 60, 6, scale=4), draw.uniform(1, 60, 2)
    shuffle = torch.randperm(60, generator=draw.generator)
    labels = backend.run("vic", (features, positions, 9, 8.0, 0.4))[0][0]
    shuffled = backend.run("vic", (features[:, shuffle], positions[:, shuffle], 9, 8.0, 0.4))[0][0]
    assert torch.equal(labels[shuffle], shuffled)


def test_backends_are_named_once() -> None:
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)
