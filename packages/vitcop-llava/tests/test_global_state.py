"""Settings of the whole process change nothing of what is kept: default dtype and device, autocast, determinism."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP
from vitcop_llava.compat import CACHE
from vitcop_llava.report import Survivors
from vitcop_llava.sequence import rotary
from vitcop_llava.sequence.segment import grid_positions, on_device

SIDE, PATCHES, IMAGE_TOKEN = 192, 576, 99
"""24 x 24 patches, as LLaVA-1.5 has: bfloat16 does not hold their positions."""


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


# In these the unpruned model computes what it always does.
EXACT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default-bfloat16": lambda: default_dtype(torch.bfloat16),
    "default-float16": lambda: default_dtype(torch.float16),
    "default-float64": lambda: default_dtype(torch.float64),
    "default-meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
}
STATES = EXACT | {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "medium-precision": medium_precision,
}
METHODS: dict[str, Any] = {
    # 3 down and 4 across is as far as may be, if positions are exact enough.
    "vitcop": ViTCoP(retained_tokens=288, cutoff_distance=3.0, spatial_threshold=5 / 24),
    "vitcop-attention": ViTCoP(retained_tokens=64, cutoff_distance=3.0, saliency="attention"),
    "vitcop-official": ViTCoP(retained_tokens=64, cutoff_distance=3.0, compat="official"),
    "fastv": FastV(retained_tokens=192),
    "pyramiddrop": PyramidDrop(retained_tokens=192),
    "sparsevlm": SparseVLM(retained_tokens=192),
    "visionzip": VisionZip(retained_tokens=64),
    "divprune": DivPrune(retained_tokens=64),
}


@pytest.fixture(scope="module")
def run(build_sized: Callable[..., Any]) -> Callable[..., tuple[Tensor, Survivors | None]]:
    """Logits and survivors of one prompt; of the unpruned model where there is no method."""
    model = build_sized(SIDE)
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 4, 5, *[IMAGE_TOKEN] * PATCHES, 7, 8, 9, 10]])
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)

    def make(method: Any = None) -> tuple[Tensor, Survivors | None]:
        if method is None:
            return model(input_ids=ids, pixel_values=pixels).logits.detach(), None
        with vitcop_llava.prune(model, method) as pruner:
            logits = model(input_ids=ids, pixel_values=pixels).logits.detach()
            return logits, pruner.survivors() if method.retention_ratio != 1 else None

    return make


@pytest.fixture(scope="module")
def usual(run: Callable[..., Any]) -> Callable[[str], tuple[Tensor, Survivors]]:
    """The same where nothing is set."""

    @cache
    def make(name: str) -> tuple[Tensor, Survivors]:
        with torch.no_grad():
            found: tuple[Tensor, Survivors] = run(METHODS[name])
        return found

    return make


@pytest.mark.parametrize("state", EXACT)
@pytest.mark.parametrize("name", METHODS)
def test_kept_tokens_are_the_same(run: Callable[..., Any], usual: Callable[..., Any], name: str, state: str) -> None:
    wanted, kept = usual(name)
    with torch.no_grad(), EXACT[state]():
        logits, found = run(METHODS[name])
    assert torch.equal(found.clusters, kept.clusters)
    for mine, theirs in zip(found.stages, kept.stages, strict=True):
        assert torch.equal(mine.patches, theirs.patches)
        assert torch.equal(mine.merged, theirs.merged)
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("state", STATES)
def test_keep_all_equals_unpatched_in_every_state(run: Callable[..., Any], state: str) -> None:
    with torch.no_grad(), STATES[state]():
        kept, _ = run(ViTCoP(retention_ratio=1))
        plain, _ = run()
    assert torch.equal(kept, plain)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_under_autocast(run: Callable[..., Any], usual: Callable[..., Any], name: str) -> None:
    with torch.no_grad(), STATES["autocast"]():
        logits, found = run(METHODS[name])
    assert logits.isfinite().all()
    assert [len(stage.patches) for stage in found.stages] == [len(stage.patches) for stage in usual(name)[1].stages]


@pytest.mark.parametrize("state", STATES)
def test_rows_of_attention_are_the_same(state: str) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 9, 4, 8, generator=generator)
    keys, weights = torch.randn(2, 2, 9, 8, generator=generator), torch.rand(2, 9, generator=generator)
    places = torch.arange(9).expand(2, -1)

    def rows() -> Tensor:
        return rotary.row_attention(queries.transpose(1, 2), keys, places, weights, scale=0.3, padding=None)

    wanted = rows()
    with STATES[state]():
        found = rows()
    assert torch.equal(found, wanted)
    assert found.dtype is torch.float32


@pytest.mark.parametrize("state", STATES)
def test_positions_and_host_numbers_are_the_same(state: str) -> None:
    cpu = torch.device("cpu")
    wanted = grid_positions(24, 7, cpu), on_device([[3, 1]], cpu)
    with STATES[state]():
        found = grid_positions(24, 7, cpu), on_device([[3, 1]], cpu)
    assert all(torch.equal(*pair) and pair[0].dtype is pair[1].dtype for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("state", EXACT)
def test_prefixes_are_the_same(
    build_sized: Callable[..., Any], pictures: Callable[..., Tensor], tmp_path: Path, state: str
) -> None:
    model, method, pixels = build_sized(96), ViTCoP(retained_tokens=24, cutoff_distance=3.0), pictures()
    ids = torch.tensor([[1, 4, 5, *[IMAGE_TOKEN] * 144]])

    def use(name: str) -> list[Tensor]:
        prefix = vitcop_llava.encode_image(model, ids, pixels, method=method)
        prefix.save(tmp_path / name)
        found = list[Tensor]()
        for held in (prefix, vitcop_llava.ImagePrefix.load(tmp_path / name, model, method)):
            given = held.inputs([[7, 8], [9]])
            found += [given["input_ids"], given["attention_mask"]]
            kept = [tensor for layer in given[CACHE].layers for tensor in (layer.keys, layer.columns)]
            assert not any(tensor.is_inference() for tensor in kept)  # calls with gradients may follow
            found += kept
        return found

    wanted = use("usual")
    with EXACT[state]():
        found = use("state")
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    assert (tmp_path / "state").read_bytes() == (tmp_path / "usual").read_bytes()
