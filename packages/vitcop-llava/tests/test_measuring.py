"""One measured run: the tokens are `generate`'s, and the cache takes what the plan says, to the byte."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from vitcop_core.presets import equal_budgets
from vitcop_llava import prune
from vitcop_llava.compat import CACHE
from vitcop_llava.families import locate
from vitcop_llava.tools.model.measuring import cache_bytes, measure

METHODS = ("FastV", "PyramidDrop", "SparseVLM", "VisionZip", "DivPrune", "VisPruner", "ViTCoP")
pytestmark = pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("share", [1 / 2, 1 / 3])
@pytest.mark.parametrize("name", METHODS)
def test_cache_takes_the_bytes_of_the_plan(
    model: Any, prompt: Callable[..., Tensor], pictures: Callable[..., Tensor], name: str, share: float, rows: int
) -> None:
    ids = torch.cat([prompt(4, "image", 7, seed=row) for row in range(rows)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(rows)}
    method, shape = equal_budgets(144 * share)[name], locate(model).shape
    with prune(model, method):
        measured = measure(model, inputs)
    assert measured.cache_bytes == rows * method.plan(8, 144).kv_bytes(shape, 12, 4)


@pytest.mark.parametrize("size", [(96, 96), (150, 60)])
@pytest.mark.parametrize("name", METHODS)
def test_cache_of_tiles_takes_the_bytes_of_the_plan(
    next_model: Any, next_inputs: Callable[..., dict[str, Any]], name: str, size: tuple[int, int]
) -> None:
    inputs, parts = next_inputs([[3, size, 5], [4, size, 4]]), locate(next_model)
    assert parts.anyres is not None
    tiling = parts.anyres.tile(size[1], size[0])
    method = equal_budgets(tiling.tokens / 2)[name]
    text = inputs["input_ids"].shape[1] - tiling.placeholders
    with prune(next_model, method):
        measured = measure(next_model, inputs)
    assert measured.cache_bytes == 2 * method.plan(8, tiling.units).kv_bytes(parts.shape, text, 4)


def test_cache_of_the_unpruned_model_holds_every_token(
    model: Any, prompt: Callable[..., Tensor], pictures: Callable[..., Tensor]
) -> None:
    ids = prompt(4, "image", 7)
    measured = measure(model, {"input_ids": ids, "pixel_values": pictures()})
    assert measured.cache_bytes == 8 * 2 * ids.shape[1] * 2 * 8 * 4  # layers, K and V, tokens, heads, width, float32


def test_cache_bytes_are_those_of_the_memory_behind_views() -> None:
    cache, room = DynamicCache(), torch.zeros(1, 2, 10, 4)
    cache.update(room, room.clone(), 0)
    layer: Any = cache.layers[0]
    layer.keys = room[:, :, :3]
    assert cache_bytes(cache) == 2 * 320
    layer.values = room[:, :, 3:]
    assert cache_bytes(cache) == 320


class Recorder:
    """A model that notes the ids it is given."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.ids: list[Tensor] = []

    def __call__(self, **given: Any) -> Any:
        self.ids.append(given["input_ids"])
        return self._model(**given)


@pytest.mark.parametrize("name", [None, "PyramidDrop", "ViTCoP"])
def test_tokens_are_those_of_generate(
    model: Any,
    prompt: Callable[..., Tensor],
    pictures: Callable[..., Tensor],
    pad: Callable[..., dict[str, Tensor]],
    name: str | None,
) -> None:
    inputs = {**pad([prompt(4, "image", 7), prompt(2, "image", 1)]), "pixel_values": pictures(2)}
    recorder, handle = Recorder(model), None
    try:
        handle = None if name is None else prune(model, equal_budgets(48)[name])
        measured = measure(recorder, inputs, new_tokens=5)
        generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    finally:
        if handle is not None:
            handle.remove()
    assert torch.equal(torch.cat(recorder.ids[1:], dim=1), generated[:, :4])
    assert measured.token_seconds is not None
    assert min(measured.prefill_seconds, measured.token_seconds) > 0


def test_one_token_has_no_time_of_its_own(
    model: Any, prompt: Callable[..., Tensor], pictures: Callable[..., Tensor]
) -> None:
    inputs = {"input_ids": prompt(4, "image", 7), "pixel_values": pictures()}
    assert measure(model, inputs).token_seconds is None
    with pytest.raises(ValueError, match="new_tokens must be at least 1, got 0"):
        measure(model, inputs, new_tokens=0)


def test_peak_counts_what_a_run_takes_at_once(prompt: Callable[..., Tensor]) -> None:
    def greedy(**given: Any) -> Any:
        room = torch.ones(64 * 2**20, dtype=torch.uint8)
        return type("Output", (), {"logits": torch.zeros(1, 1, 3) + room[0], CACHE: DynamicCache()})

    peak = measure(greedy, {"input_ids": prompt(4)}).peak_bytes
    if peak is None:
        pytest.skip("this system does not let a process put its high-water mark back")
    assert 60 * 2**20 < peak < 90 * 2**20
