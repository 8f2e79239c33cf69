"""Several tensors gathered at the same places: every dtype, shared rows, places that are none, gradients, errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitcop_core import ops

TOKENS, WIDTH = 6, 5
INDEX = torch.tensor([[0, 2, 5, TOKENS], [1, 3, -1, 4]])


def parts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    rotary = torch.randn(1, TOKENS, 2, 2, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, TOKENS, generator=generator) < 0.5
    return [hidden, rotary, mask, torch.arange(TOKENS)[None], hidden.to(torch.bfloat16)]


def test_gather_tokens_takes_each_place_and_zeros_where_there_is_none() -> None:
    for part, found in zip(parts(), ops.gather_tokens(parts(), INDEX), strict=True):
        assert found.dtype == part.dtype
        assert found.is_contiguous()
        for row, places in enumerate(INDEX.tolist()):
            for place, token in enumerate(places):
                own = part[row % part.shape[0]]
                there = own[token] if 0 <= token < TOKENS else torch.zeros_like(own[0])
                assert torch.equal(found[row, place], there)


def test_gather_tokens_reads_strided_tensors() -> None:
    hidden = parts()[0]
    views = [hidden.transpose(0, 1).contiguous().transpose(0, 1), hidden[..., ::2], hidden[:1].expand(2, -1, -1)]
    for view, found in zip(views, ops.gather_tokens(views, INDEX), strict=True):
        assert torch.equal(found, ops.gather_tokens([view.contiguous()], INDEX)[0])


def test_gather_tokens_takes_more_tensors_than_one_launch() -> None:
    many = [parts()[0] + number for number in range(11)]
    for number, found in enumerate(ops.gather_tokens(many, INDEX)):
        assert torch.equal(found[0, 0], parts()[0][0, 0] + number)


def test_gather_tokens_passes_opcheck() -> None:
    tensors = parts()
    tensors[0].requires_grad_()
    torch.library.opcheck(torch.ops.vitcop.gather_tokens.default, (tensors, INDEX))


def test_gather_tokens_is_differentiable() -> None:
    hidden, rotary, *_ = parts()

    def gathered(one: Tensor, other: Tensor) -> list[Tensor]:
        return ops.gather_tokens([one, other], INDEX)

    assert torch.autograd.gradcheck(gathered, (hidden.requires_grad_(), rotary.requires_grad_()))


def test_gather_tokens_is_traced_whole() -> None:
    compiled = torch.compile(lambda part, index: ops.gather_tokens([part], index), backend="eager", fullgraph=True)
    assert torch.equal(compiled(parts()[0], INDEX)[0], ops.gather_tokens(parts()[:1], INDEX)[0])


@pytest.mark.parametrize(
    ("tensors", "index", "error", "match"),
    [
        (torch.zeros(2, 3), INDEX, TypeError, "tensors must be a sequence, got Tensor"),
        ([], INDEX, ValueError, "tensors must be at least one tensor, got 0"),
        ([[1.0]], INDEX, TypeError, r"tensors\[0\] must be a tensor, got list"),
        ([torch.zeros(3)], INDEX, ValueError, r"tensors\[0\] must be of shape \[B, n\], got \[3\]"),
        ([torch.zeros(3, 4)], INDEX, ValueError, r"tensors\[0\] must be of 1 or 2 rows, got 3"),
        ([torch.zeros(2, 4), torch.zeros(2, 5)], INDEX, ValueError, r"tensors\[1\] must be of shape \[B, 4\]"),
        ([torch.zeros(2, 4)], INDEX.float(), TypeError, "index must have dtype torch.int64"),
        ([torch.zeros(2, 4)], INDEX.to("meta"), ValueError, r"tensors\[0\] must be on meta, got cpu"),
    ],
)
def test_bad_arguments_are_named(tensors: Any, index: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ops.gather_tokens(tensors, index)
