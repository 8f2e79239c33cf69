"""Every operator: registration, batches, padding, dtypes, determinism, gradients and errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcop_core import Clusters, ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS = (23, 1, 14, 2)
COUNTS = (5, 1, 3, 2)
ROWS, TOKENS = len(LENGTHS), max(LENGTHS)


@dataclass(frozen=True)
class OpSpec:
    """An operator and how to call it on a batch.

    Attributes:
        name: In ``vitcop_core.ops`` and ``torch.ops.vitcop``.
        inputs: Tensors with a batch dimension, from a generator and a dtype.
        settings: The arguments after them.
        is_ragged: Whether it takes ``lengths`` and ``counts``.
    """

    name: str
    inputs: Callable[[torch.Generator, torch.dtype], tuple[Tensor, ...]]
    settings: tuple[Any, ...] = ()
    is_ragged: bool = True

    def __call__(self, *tensors: Tensor, settings: tuple[Any, ...] | None = None, **rows: Any) -> list[Tensor]:
        """Run it, and list what it gives."""
        result = getattr(ops, self.name)(*tensors, *(self.settings if settings is None else settings), **rows)
        if isinstance(result, Tensor):
            return [result]
        if isinstance(result, Clusters):
            return list(result)
        return [result.index, result.hidden, result.is_merged, result.slot]


def _attention(generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    query = torch.randn(ROWS, 3, 8, generator=generator).to(dtype)
    return query, torch.randn(ROWS, 3, TOKENS, 8, generator=generator).to(dtype)


def _all_attention(generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(torch.randn(ROWS, 3, TOKENS, 8, generator=generator).to(dtype) for _ in range(2))


def _tokens(generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    features = (4 * torch.randn(ROWS, TOKENS, 6, generator=generator)).to(dtype)
    return features, torch.rand(ROWS, TOKENS, 2, generator=generator)


def _groups(generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden = torch.randn(ROWS, TOKENS, 6, generator=generator).to(dtype)
    labels = torch.randint(4, (ROWS, TOKENS), generator=generator)
    return hidden, labels, torch.rand(ROWS, TOKENS, generator=generator)


SPECS = (
    OpSpec("cls_saliency", _attention, (0.35,), is_ragged=False),
    OpSpec("top_tokens", lambda g, t: (torch.randn(ROWS, TOKENS, generator=g).to(t),), (5,)),
    OpSpec("vic", _tokens, (5,)),
    OpSpec("key_norm", lambda g, t: (torch.randn(ROWS, 3, TOKENS, 8, generator=g).to(t),), is_ragged=False),
    OpSpec("co_prune", _groups, (5, 4)),
    OpSpec("received_attention", _all_attention, (0.35,), is_ragged=False),  # its lengths: test_received_attention
)
RAGGED = [spec for spec in SPECS if spec.is_ragged]

specs = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
ragged = pytest.mark.parametrize("spec", RAGGED, ids=lambda spec: spec.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def inputs_of(spec: OpSpec, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    return spec.inputs(torch.Generator().manual_seed(seed), dtype)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


@dtypes
@specs
def test_op_passes_opcheck(spec: OpSpec, dtype: torch.dtype) -> None:
    tensors = inputs_of(spec, dtype)
    rows: tuple[Any, ...] = ()
    if spec.name == "vic":
        rows = (8.0, 0.6)
    if spec.name == "top_tokens":
        rows = (True,)
    if spec.name == "co_prune":
        tensors[0].requires_grad_()
    if spec.is_ragged:
        rows = (*rows, torch.tensor(LENGTHS), torch.tensor(COUNTS))
    torch.library.opcheck(getattr(torch.ops.vitcop, spec.name).default, (*tensors, *spec.settings, *rows))


@dtypes
@specs
def test_batch_equals_its_rows(spec: OpSpec, dtype: torch.dtype) -> None:
    tensors = inputs_of(spec, dtype)
    together = spec(*tensors)
    for row in range(ROWS):
        alone = spec(*(tensor[row : row + 1] for tensor in tensors))
        assert_same([part[row : row + 1] for part in together], alone)


@dtypes
@ragged
def test_ragged_batch_equals_its_rows_alone(spec: OpSpec, dtype: torch.dtype) -> None:
    tensors = inputs_of(spec, dtype)
    together = spec(*tensors, lengths=torch.tensor(LENGTHS), counts=torch.tensor(COUNTS))
    for row, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True)):
        short = (tensor[row : row + 1, :length] for tensor in tensors)
        alone = spec(*short, settings=(count, *spec.settings[1:]))
        for mine, theirs in zip(together, alone, strict=True):
            valid = theirs.shape[1]
            assert_same([mine[row : row + 1, :valid]], [theirs])


@ragged
def test_padding_is_never_read(spec: OpSpec) -> None:
    tensors = inputs_of(spec)
    rows: dict[str, Any] = {"lengths": torch.tensor(LENGTHS), "counts": torch.tensor(COUNTS)}
    padding = torch.arange(TOKENS) >= rows["lengths"].unsqueeze(1)
    spoiled = []
    for tensor in tensors:
        value = float("nan") if tensor.is_floating_point() and tensor.shape[2:] != (2,) else -1
        spoiled.append(tensor.masked_fill(padding.view(ROWS, TOKENS, *[1] * (tensor.dim() - 2)), value))
    assert_same(spec(*spoiled, **rows), spec(*tensors, **rows))


def test_unused_outputs_are_marked() -> None:
    lengths, counts = torch.tensor(LENGTHS), torch.tensor(COUNTS)
    used = torch.arange(5) < counts.unsqueeze(1)
    padding = torch.arange(TOKENS) >= lengths.unsqueeze(1)
    index = ops.top_tokens(torch.rand(ROWS, TOKENS), 5, lengths=lengths, counts=counts)
    assert torch.equal(index == TOKENS, ~used)
    features, positions = inputs_of(SPECS[2])
    clusters = ops.vic(features, positions, 5, lengths=lengths, counts=counts)
    assert torch.equal(clusters.centers == TOKENS, ~used)
    assert torch.equal(clusters.labels == -1, padding)
    for part in clusters[2:]:
        assert (part[padding] == 0).all()
    hidden, labels, norms = inputs_of(SPECS[4])
    kept = ops.co_prune(hidden, labels, norms, 5, 4, lengths=lengths, counts=counts)
    assert kept.hidden is not None
    assert kept.is_merged is not None
    assert kept.slot is not None
    assert torch.equal(kept.index == TOKENS, ~used)
    assert (kept.hidden[~used] == 0).all()
    assert not kept.is_merged[~used].any()
    assert torch.equal(kept.slot == 5, padding)


@ragged
def test_empty_rows_give_nothing(spec: OpSpec) -> None:
    tensors = inputs_of(spec)
    lengths = torch.zeros(ROWS, dtype=torch.int64)
    first, second, *_ = [*spec(*tensors, lengths=lengths), None]
    assert (first == (-1 if spec.name == "vic" else TOKENS)).all()
    if second is not None:
        assert (second == (TOKENS if spec.name == "vic" else 0)).all()


@dtypes
@specs
def test_low_precision_inputs_are_computed_in_float32(spec: OpSpec, dtype: torch.dtype) -> None:
    tensors = inputs_of(spec, dtype)
    wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]
    for mine, theirs in zip(spec(*tensors), spec(*wide), strict=True):
        assert_same([mine], [theirs.to(mine.dtype)])
        assert mine.dtype in (torch.float32, torch.int64, torch.bool) or spec.name == "co_prune"


@specs
def test_autocast_changes_nothing(spec: OpSpec) -> None:
    tensors = inputs_of(spec)
    with torch.autocast("cpu", torch.bfloat16):
        under = spec(*tensors)
    assert_same(under, spec(*tensors))


@specs
def test_op_is_deterministic(spec: OpSpec) -> None:
    tensors = inputs_of(spec)
    assert_same(spec(*tensors), spec(*tensors))


@specs
def test_op_runs_on_meta_tensors(spec: OpSpec) -> None:
    tensors = inputs_of(spec)
    shapes = [(part.shape, part.dtype) for part in spec(*tensors)]
    found = spec(*(tensor.to("meta") for tensor in tensors))
    assert [(part.shape, part.dtype) for part in found] == shapes
    assert all(part.is_meta for part in found)


@specs
def test_op_is_traced_whole(spec: OpSpec) -> None:
    tensors = inputs_of(spec)
    compiled = torch.compile(lambda *inputs: spec(*inputs), backend="eager", fullgraph=True)
    assert_same(compiled(*tensors), spec(*tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_a_merged_token_is_shared_by_its_group(dtype: torch.dtype) -> None:
    hidden, labels, norms = inputs_of(SPECS[4])
    hidden = hidden.to(dtype).requires_grad_()
    lengths, counts = torch.tensor(LENGTHS), torch.tensor(COUNTS)

    def merged(states: Tensor) -> Tensor:
        result = ops.co_prune(states, labels, norms, 5, 4, lengths=lengths, counts=counts).hidden
        assert result is not None
        return result

    if dtype == torch.float64:
        assert torch.autograd.gradcheck(merged, (hidden,))
    (grad,) = torch.autograd.grad(merged(hidden).sum(), hidden)
    assert (grad[3, 2:] == 0).all()
    assert (grad[0].sum(0) - 5).abs().max() < 1e-5


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.name != "co_prune"], ids=lambda spec: spec.name)
def test_scores_and_choices_carry_no_gradient(spec: OpSpec) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs_of(spec)]
    assert not any(part.requires_grad for part in spec(*tensors))


def test_top_tokens_breaks_ties_by_index_and_ranks_nan_last() -> None:
    nan = float("nan")
    values = torch.tensor([[1.0, 1, 1, 1, 0], [nan, 2, nan, -3, 2]])
    assert ops.top_tokens(values, 2).tolist() == [[0, 1], [1, 4]]
    assert ops.top_tokens(values, 2, smallest=True).tolist() == [[0, 4], [1, 3]]
    assert ops.top_tokens(values, 4).tolist() == [[0, 1, 2, 3], [0, 1, 3, 4]]
    infinite = torch.tensor([[-torch.inf, -torch.inf, 5.0]])
    assert ops.top_tokens(infinite, 3, lengths=torch.tensor([2])).tolist() == [[0, 1, 3]]


def test_cls_saliency_sums_a_softmax_over_all_tokens() -> None:
    query, keys = inputs_of(SPECS[0])
    saliency = ops.cls_saliency(query, keys, 0.35)
    torch.testing.assert_close(saliency.sum(1), torch.full((ROWS,), 3.0))


def test_key_norm_is_the_same_after_a_rotation() -> None:
    keys = inputs_of(SPECS[3])[0].double()
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    torch.testing.assert_close(ops.key_norm(keys @ rotation), ops.key_norm(keys))


def test_co_prune_with_room_for_all_changes_nothing() -> None:
    hidden, labels, norms = inputs_of(SPECS[4])
    kept = ops.co_prune(hidden, labels, norms, TOKENS + 2, 4)
    assert kept.hidden is not None
    assert kept.is_merged is not None
    assert torch.equal(kept.index[:, :TOKENS], torch.arange(TOKENS).expand(ROWS, -1))
    assert torch.equal(kept.hidden[:, :TOKENS], hidden)
    assert not kept.is_merged.any()
    assert (kept.index[:, TOKENS:] == TOKENS).all()


def test_co_prune_row_with_a_budget_of_nothing_keeps_nothing() -> None:
    hidden, labels, norms = inputs_of(SPECS[4])
    kept = ops.co_prune(hidden, labels, norms, 5, 4, counts=torch.tensor([5, 0, 1, 5]))
    assert (kept.index[1] == TOKENS).all()
    assert (kept.index[2, 1:] == TOKENS).all()
    assert (kept.index[[0, 3]] < TOKENS).all()


def test_co_prune_fills_the_budget_whatever_the_norms() -> None:
    hidden, labels, norms = inputs_of(SPECS[4])
    for value in (float("nan"), float("inf"), -1.0):
        for budget in (2, 9):
            kept = ops.co_prune(hidden, 2 * labels, torch.full_like(norms, value), budget, 8)
            assert (kept.index < TOKENS).all()


def test_co_prune_ranks_a_cluster_with_infinities_of_both_signs_last() -> None:
    norms = torch.tensor([[torch.inf, 1, -torch.inf, 1, 2, 2, 3, 3]])
    labels = torch.tensor([[0, 1, 0, 1, 2, 2, 3, 3]])
    for clusters in (4, 6):  # the last two labels have no token
        kept = ops.co_prune(torch.zeros(1, 8, 2), labels, norms, 3, clusters)
        assert kept.slot is not None
        # Two clusters of smallest sums stay groups; the third, 3 + 3, and the infinite one become one.
        assert kept.slot[0, [0, 2, 6, 7]].unique().numel() == 1
        assert kept.slot[0].unique().numel() == 3


def test_vic_puts_duplicates_at_distance_zero() -> None:
    # Sizes at which products of equal rows come out differently, by where in the matrix they stand.
    features = 100 + 5 * torch.randn(1, 23, 1000, generator=torch.Generator().manual_seed(0))
    clusters = ops.vic(torch.cat([features, features[:, :12]], 1), torch.zeros(1, 35, 2), 3)
    assert (clusters.distance[:, 23:] == 0).all()
    assert torch.equal(clusters.labels[:, 23:], clusters.labels[:, :12])


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("spatial_threshold", [1e-9, 0.6])
def test_vic_of_few_equal_tokens_is_defined(tokens: int, spatial_threshold: float) -> None:
    positions = torch.arange(2.0 * tokens).view(1, tokens, 2)
    clusters = ops.vic(torch.ones(1, tokens, 4), positions, 1, spatial_threshold=spatial_threshold)
    assert clusters.labels.tolist() == [[0] * tokens]
    assert clusters.centers.tolist() == [[0]]
    assert clusters.distance[0, 0] == torch.inf
    assert clusters.importance[0, 0] == torch.inf
    assert clusters.density.tolist() == [[tokens - 1.0] * tokens]
