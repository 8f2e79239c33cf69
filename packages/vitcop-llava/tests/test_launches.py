"""What pruning adds to the launches of a prefill and of a token: operators that start work on a device, and kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

import vitcop_llava
from vitcop_llava import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_llava.hooks import calls, reading

KERNELS = {"vic": 8, "cls_saliency": 2, "co_prune": 2, "key_norm": 1, "top_tokens": 1, "gather_tokens": 1}
"""What vitcop-cuda launches for each operator; of vic one is torch's matrix product, and up to 256 tokens take 3."""

FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "_unsafe_view",
}
"""Operators that are no views by their schema, and start nothing either."""

IMAGE, TEXT = 99, 60


class Launches(TorchDispatchMode):
    """Counts them, composite operators by their parts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = kwargs or {}, function._schema.name.partition("::")[2]
        if function.namespace == "vitcop":
            self.count += KERNELS[name]
            return function(*args, **given)
        parts = function.decompose(*args, **given)
        if parts is not NotImplemented:
            return parts
        self.count += not function.is_view and name not in FREE
        return function(*args, **given)


def _sizes(layers: int, **others: Any) -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "num_hidden_layers": layers}
    return {"hidden_size": 32, "intermediate_size": 48, **heads, **others}


@pytest.fixture(scope="module")
def deep() -> Any:
    """LLaVA-1.5 but for its widths: 24 layers of CLIP on 576 patches, 32 of Llama."""
    vision = CLIPVisionConfig(**_sizes(24, image_size=336, patch_size=14))
    text = LlamaConfig(**_sizes(32, vocab_size=100, pad_token_id=0))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=576)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def deep_next() -> Any:
    """LLaVA-NeXT 13B but for its widths and patches: 40 layers of Llama on the base and four tiles of 36 patches."""
    vision = CLIPVisionConfig(**_sizes(24, image_size=48, patch_size=8))
    text = LlamaConfig(**_sizes(40, vocab_size=100, pad_token_id=0))
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_grid_pinpoints=[[96, 96]]
    )
    return LlavaNextForConditionalGeneration(config).eval()


def prompt_of(placeholders: int, rows: int, **pixels: Any) -> dict[str, Any]:
    """What `generate` hands to a model's first forward."""
    ids = torch.full((rows, TEXT + placeholders), IMAGE)
    ids[:, :35], ids[:, 35 + placeholders :] = torch.arange(3, 38), torch.arange(40, 65)
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1, **pixels}


def launches(model: Any, given: dict[str, Any]) -> int:
    counted = Launches()
    with torch.no_grad(), counted:
        model(**given, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
    return counted.count


def added(model: Any, given: dict[str, Any], method: Any) -> tuple[int, int]:
    """What the first prefill of a pruner has more than the unpruned one, and what the next ones have."""
    plain = launches(model, given)
    with vitcop_llava.prune(model, method):
        return launches(model, given) - plain, launches(model, given) - plain


def test_prefill_adds_at_most_sixty_launches(deep: Any) -> None:
    given = prompt_of(576, 1, pixel_values=torch.zeros(1, 3, 336, 336))
    first, later = added(deep, given, ViTCoP(retained_tokens=64))
    assert first <= 48
    assert later <= 40


@pytest.mark.parametrize("rows", [2, 3])
def test_batch_adds_as_many(model: Any, pictures: Callable[..., Tensor], rows: int) -> None:
    given = prompt_of(144, rows, pixel_values=pictures(rows))
    assert max(added(model, given, ViTCoP(retained_tokens=24))) <= 50


def test_tiled_prefill_adds_at_most_sixty_launches(deep_next: Any) -> None:
    given = prompt_of(192, 1, pixel_values=torch.zeros(1, 5, 3, 48, 48), image_sizes=[[96, 96]])
    first, later = added(deep_next, given, ViTCoP(retained_tokens=24))
    assert first <= 60
    assert later <= 55


@pytest.mark.parametrize("method", [ViTCoP(retained_tokens=64), FastV(retained_tokens=64)], ids=["vitcop", "fastv"])
@pytest.mark.parametrize("rows", [1, 2])
def test_decoded_token_adds_at_most_two_launches(deep: Any, rows: int, method: Any) -> None:
    """With a mask of ones, as `generate` passes it."""
    given = prompt_of(576, rows, pixel_values=torch.zeros(rows, 3, 336, 336))
    plain = decoding_launches(deep, given)
    with vitcop_llava.prune(deep, method):
        assert max(decoding_launches(deep, given)) <= min(plain) + 2


def decoding_launches(model: Any, given: dict[str, Any]) -> list[int]:
    """Of each of two tokens after a prefill."""
    found, cache, mask = [], DynamicCache(), given["attention_mask"]
    with torch.no_grad():
        model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(2):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            step = {"input_ids": mask[:, -1:], "attention_mask": mask, "position_ids": mask.sum(-1, keepdim=True) - 1}
            with Launches() as counted:
                model(**step, past_key_values=cache, use_cache=True)
            found.append(counted.count)
    return found


BOUNDS = {
    "fastv": (FastV(retained_tokens=60), 60),
    "visionzip": (VisionZip(retained_tokens=24), 125),
    "divprune": (DivPrune(retained_tokens=24), 110),
    "vispruner": (VisPruner(retained_tokens=24), 200),
    "pyramid": (PyramidDrop(retained_tokens=60), 300),
    "sparse": (SparseVLM(retained_tokens=60), 650),
    "attention": (ViTCoP(retained_tokens=24, saliency="attention"), 145),
    "official": (ViTCoP(retained_tokens=24, compat="official"), 280),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_prefill_of_other_methods(model: Any, prompt: Any, pictures: Callable[..., Tensor], name: str) -> None:
    """Rows of attention and VisionZip's merging have no kernels: what they add is here so that it does not grow."""
    method, most = BOUNDS[name]
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    assert max(added(model, given, method)) <= most


def test_prefill_is_read_before_the_tower_runs(
    model: Any, prompt: Any, pictures: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is read after it, by transformers neither: the device is never drained before the first layer."""
    order = list[str]()

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function._schema.name in ("aten::_local_scalar_dense", "aten::equal"):
                order.append("value")
            return function(*args, **(kwargs or {}))

    def read(*args: Any) -> Any:
        order.append("prompt")
        return reading.read_prompt(*args)

    monkeypatch.setattr(calls, "read_prompt", read)
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    handle = model.model.vision_tower.register_forward_pre_hook(lambda *_: order.append("tower"))
    with vitcop_llava.prune(model, ViTCoP(retained_tokens=24)), Reads():  # type: ignore[no-untyped-call]
        model(**given, past_key_values=DynamicCache(), logits_to_keep=1)
    handle.remove()
    assert order == ["prompt", "tower"]
