"""What is chosen depends on the tensors alone, and on nothing that is set for the whole process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcop_core import (
    DecoderCut,
    DecoderView,
    DivPrune,
    PromptView,
    SparseVLM,
    VisionView,
    VisionZip,
    VisPruner,
    ViTCoP,
    ops,
)
from vitcop_core.diagnostics import cutoff_scale
from vitcop_core.methods import _temporal as temporal

SIDE, FRAMES = 24, 3


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def medium_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default-bfloat16": lambda: default_dtype(torch.bfloat16),
    "default-float16": lambda: default_dtype(torch.float16),
    "default-float64": lambda: default_dtype(torch.float64),
    "default-meta": lambda: torch.device("meta"),
    "autocast-bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast-float16": lambda: torch.autocast("cpu", torch.float16),
    "deterministic": deterministic,
    "medium-precision": medium_precision,
    "no-grad": torch.no_grad,
    "inference": torch.inference_mode,
}
METHODS: dict[str, Any] = {
    "vitcop": ViTCoP(retained_tokens=64),
    "vitcop-official": ViTCoP(retained_tokens=64, compat="official"),
    "vitcop-change": ViTCoP(retained_tokens=64, change_share=0.5),
    # From one frame to the next, 3 down and 4 across is then as far as may be.
    "vitcop-spans": ViTCoP(retained_tokens=64, cluster_frames=FRAMES, spatial_threshold=89**0.5 / 24),
    "visionzip": VisionZip(retained_tokens=64),
    "divprune": DivPrune(retained_tokens=64),
    "vispruner": VisPruner(retained_tokens=64),
}
states = pytest.mark.parametrize("state", STATES)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = vars(value).values() if hasattr(value, "__dict__") else value if isinstance(value, tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def check_same(compute: Callable[[], Any], state: str) -> None:
    wanted = tensors_in(compute())
    with STATES[state]():
        found = tensors_in(compute())
    assert len(found) == len(wanted) > 0
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype is theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.fixture(scope="module")
def frames() -> VisionView:
    """A clip on a grid whose positions bfloat16 does not hold, on the scale that the cutoff distance is made for."""
    generator = torch.Generator().manual_seed(0)
    tokens, heads, width = SIDE * SIDE, 2, 8
    grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float() / SIDE
    return VisionView(
        query_cls=torch.randn(FRAMES, heads, width, generator=generator),
        keys=3 * torch.randn(FRAMES, heads, 1 + tokens, width, generator=generator),
        scale=width**-0.5,
        positions=grid.expand(FRAMES, -1, -1),
        hidden=torch.randn(FRAMES, tokens, 16, generator=generator),
        hidden_cls=torch.randn(FRAMES, 16, generator=generator),
        frames=(FRAMES,),
    )


@states
@pytest.mark.parametrize("name", METHODS)
def test_vision_cut_is_the_same(frames: VisionView, name: str, state: str) -> None:
    check_same(lambda: METHODS[name].cut_vision(frames, 64, 12), state)


@states
@pytest.mark.parametrize("compat", ["paper", "official"])
@pytest.mark.parametrize("stage", ["co_prune", "top_tokens"])
def test_decoder_cut_is_the_same(decoder_view: Callable[..., DecoderView], stage: Any, compat: Any, state: str) -> None:
    view, method = decoder_view([60, 41], 7), ViTCoP(retained_tokens=64, compat=compat)
    check_same(lambda: method.cut_decoder(DecoderCut(2, 17, stage), view), state)


@states
def test_rating_and_recycling_are_the_same(state: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, text = torch.randn(2, 90, 16, generator=generator), torch.randn(2, 11, 16, generator=generator)
    weights = torch.rand(2, 11, 90, generator=generator)

    def cut() -> Any:
        view = DecoderView(
            hidden=hidden,
            keys=hidden[:, None],
            labels=None,
            num_clusters=0,
            lengths=None,
            attention=lambda: weights[:, 0],
            attention_of=lambda raters: (weights * raters.unsqueeze(2)).sum(1),
            prompt=lambda: PromptView(hidden, None, text, None),
        )
        return SparseVLM(retained_tokens=64).cut_decoder(
            DecoderCut(3, 20, "recycle", recycled=3, pack_positions=True), view
        )

    check_same(cut, state)


@states
def test_shares_of_a_clip_are_the_same(state: str) -> None:
    # So many that the divisors 1/2, 3/2, ... are more than half precision holds.
    weights, amount, room = torch.tensor([1.0, 0.99, 0.7]), torch.tensor(700), torch.tensor([800, 800, 800])
    check_same(lambda: temporal.share_out(weights, amount, room, 800), state)


@states
def test_scale_of_the_features_is_the_same(frames: VisionView, state: str) -> None:
    check_same(lambda: cutoff_scale(frames.hidden[:, :40]), state)


@states
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_product_is_exact(dtype: torch.dtype, state: str) -> None:
    left, right = (torch.randn(2, 5, 7).to(dtype) for _ in range(2))
    wanted = left.double() @ right.double().mT
    with STATES[state]():
        assert torch.equal(ops.product(left, right.mT), wanted)
