"""The attention that tokens receive: what it is, row by row, and in how much memory."""

import math
import sys
from typing import Any
from weakref import finalize

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitcop_core import ops

LENGTHS = (23, 1, 14, 0, 2)


def states(rows: int, heads: int, tokens: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, rows, heads, tokens, width, generator=generator)
    return queries, keys


def slow(queries: Tensor, keys: Tensor, scale: float) -> list[float]:
    """One row, weight by weight: ``[H, n, e]`` to n numbers."""
    heads, tokens, _ = keys.shape
    received = [0.0] * tokens
    for asking, asked in zip(queries.double().numpy(), keys.double().numpy(), strict=True):
        for query in asking:
            scores = [scale * float(np.dot(query, key)) for key in asked]
            weights = [math.exp(score - max(scores)) for score in scores]
            for token, weight in enumerate(weights):
                received[token] += weight / math.fsum(weights) / (heads * tokens)
    return received


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.sampled_from([0.0, 0.3, -1.0, 50.0]))
def test_it_is_the_mean_of_what_all_tokens_pay(tokens: int, heads: int, width: int, scale: float) -> None:
    queries, keys = states(2, heads, tokens, width, tokens)
    found = ops.received_attention(queries, keys, scale)
    assert found.dtype == torch.float32
    for row in range(2):
        np.testing.assert_allclose(found[row], slow(queries[row], keys[row], scale), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = states(3, 4, 23, 8)
    lengths = torch.tensor([23, 7, 12])
    whole = ops.received_attention(queries, keys, 0.35, lengths=lengths)
    for block in (1, 50, 23 * 23, 3 * 23 * 23, 9 * 23 * 23):
        monkeypatch.setattr(sys.modules["vitcop_core.ops.received_attention"], "_BLOCK", block)
        assert torch.equal(ops.received_attention(queries, keys, 0.35, lengths=lengths), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_depends_neither_on_its_neighbors_nor_on_padding(dtype: torch.dtype) -> None:
    queries, keys = (part.to(dtype) for part in states(len(LENGTHS), 3, max(LENGTHS), 8))
    lengths = torch.tensor(LENGTHS)
    spoiled = []
    for part in (queries, keys):
        padding = (torch.arange(part.shape[2]) >= lengths[:, None])[:, None, :, None]
        spoiled.append(part.masked_fill(padding, math.nan))
    found = ops.received_attention(spoiled[0], spoiled[1], 0.35, lengths=lengths)
    for row, length in enumerate(LENGTHS):
        own = slice(row, row + 1), slice(None), slice(length)
        assert torch.equal(found[row, :length], ops.received_attention(queries[own], keys[own], 0.35)[0])
        assert (found[row, length:] == 0).all()


def test_op_with_lengths_passes_opcheck() -> None:
    what = (*states(len(LENGTHS), 3, max(LENGTHS), 8), 0.35, torch.tensor(LENGTHS))
    torch.library.opcheck(torch.ops.vitcop.received_attention.default, what)


class _Peak(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {storage(part) for part in (*args, *(kwargs or {}).values()) if isinstance(part, Tensor)}
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple | list) else (made,):
            if isinstance(part, Tensor) and storage(part) not in given | self._known:
                kept, size = part.untyped_storage(), part.untyped_storage().nbytes()
                self._known.add(kept._cdata)
                self.held, self.peak = self.held + size, max(self.peak, self.held + size)
                finalize(kept, self._gone, kept._cdata, size)
        return made

    def _gone(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.held -= size


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@pytest.mark.parametrize(("tokens", "width"), [(16_384, 80), (16_384, 72), (729, 72), (64, 128)])
def test_memory_grows_with_the_tokens_and_not_with_their_square(tokens: int, width: int) -> None:
    """On a device without values: what is allocated is the same, and nothing is computed."""
    rows = 1 if tokens > 1000 else 64
    shape = (rows, tokens, 16, width)  # as projections give them: heads behind tokens
    queries, keys = (torch.empty(shape, dtype=torch.bfloat16, device="meta").transpose(1, 2) for _ in range(2))
    lengths = torch.empty(rows, dtype=torch.int64, device="meta")
    with _Peak() as seen:
        ops.REFERENCES["received_attention"](queries, keys, 0.1, lengths)
    assert 2**22 < seen.peak < 2**26
