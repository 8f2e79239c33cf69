"""A mask of ones costs nothing; one with padding is made once for each group of layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig
from transformers.masking_utils import create_causal_mask

import vitcop_llava
from vitcop_llava import DivPrune, FastV, VisionZip, ViTCoP
from vitcop_llava.sequence.masks import PhysicalSizes, segment_mask

Make = Callable[..., Tensor]
METHODS = [
    ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    FastV(retained_tokens=60),
    VisionZip(retained_tokens=24),
    DivPrune(retained_tokens=24),
]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


class Launches(TorchDispatchMode):
    """Counts operators that would launch something on a device: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view and "empty" not in function._schema.name
        return function(*args, **(kwargs or {}))


def launches_of_a_token(model: Any, ids: Tensor, images: Tensor, *, masked: bool) -> int:
    """Launches of one decoded token after a prefill, with a mask of ones or none."""
    mask = torch.ones(ids.shape[0], ids.shape[1] + 1, dtype=torch.int64) if masked else None
    cache = DynamicCache()
    given = {"attention_mask": None if mask is None else mask[:, :-1], "past_key_values": cache}
    model(input_ids=ids, pixel_values=images, **given)
    launches = Launches()
    with launches:
        model(input_ids=ids.new_full((ids.shape[0], 1), 5), attention_mask=mask, past_key_values=cache)
    return launches.count


@by_name
@pytest.mark.parametrize("masked", [True, False], ids=["ones", "none"])
@pytest.mark.parametrize("rows", [1, 2])
def test_decoded_token_launches_what_the_unpruned_does(
    model: Any, prompt: Make, pictures: Make, method: Any, masked: bool, rows: int
) -> None:
    ids, images = prompt(3, "image", 8).expand(rows, -1).contiguous(), pictures(rows)
    unpruned = launches_of_a_token(model, ids, images, masked=masked)
    with vitcop_llava.prune(model, method):
        assert launches_of_a_token(model, ids, images, masked=masked) <= unpruned + 2


def masks_of_layers(model: Any, run: Callable[[], Any]) -> list[list[Tensor | None]]:
    """The mask that each layer's attention was called with, call by call."""
    found: list[list[Tensor | None]] = [[] for _ in model.model.language_model.layers]

    def look(index: int) -> Callable[..., None]:
        return lambda module, args, kwargs: found[index].append(kwargs.get("attention_mask"))

    handles = [
        layer.self_attn.register_forward_pre_hook(look(index), with_kwargs=True)
        for index, layer in enumerate(model.model.language_model.layers)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


@by_name
def test_mask_of_ones_is_left_out(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, method):
        found = masks_of_layers(model, lambda: model.generate(**given, max_new_tokens=3))
    assert all(len(calls) == 3 and not any(mask is not None for mask in calls) for calls in found)


def test_padding_makes_one_mask_a_group(model: Any, prompt: Make, pictures: Make, pad: Any) -> None:
    batch = pad([prompt(3, "image", 8), prompt(6, "image", 2, seed=1)])
    with vitcop_llava.prune(model, METHODS[0]):
        found = masks_of_layers(model, lambda: model.generate(**batch, pixel_values=pictures(2), max_new_tokens=2))
    for call in range(2):
        masks = [layer[call] for layer in found]
        assert all(mask is not None and mask.dtype == torch.float32 for mask in masks)
        assert len({id(mask) for mask in masks}) == 3  # before layer 1, before layer 6, and after
        assert all(mask is not None and mask.stride(-2) % 16 == 0 for mask in masks)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32], ids=str)
@pytest.mark.parametrize("padded", [True, False])
def test_masks_of_every_dtype_mean_the_same(
    model: Any, prompt: Make, pictures: Make, pad: Any, kind: torch.dtype, padded: bool
) -> None:
    batch = pad([prompt(3, "image", 8), prompt(*((2,) if padded else (3,)), "image", 8, seed=1)])
    with vitcop_llava.prune(model, METHODS[0]):
        wanted = model(**batch, pixel_values=pictures(2)).logits
        batch["attention_mask"] = batch["attention_mask"].to(kind)
        assert torch.equal(model(**batch, pixel_values=pictures(2)).logits, wanted)


@by_name
def test_mask_that_changes_while_decoding_is_seen(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    """A text token that is masked from some step on is not attended to, as in the unpruned model."""
    ids, cache, step = prompt(3, "image", 8), DynamicCache(), torch.tensor([[5]])
    ones = torch.ones(1, ids.shape[1] + 1, dtype=torch.int64)
    hidden = ones.clone()
    hidden[0, 2] = 0
    with vitcop_llava.prune(model, method):
        model(input_ids=ids, pixel_values=pictures(), attention_mask=ones[:, :-1], past_key_values=cache)
        seen = model(input_ids=step, attention_mask=ones, past_key_values=cache).logits
        cache.crop(-1)
        unseen = model(input_ids=step, attention_mask=hidden, past_key_values=cache).logits
    assert not torch.allclose(seen, unseen)


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [None, 0, 3])
def test_mask_of_a_lone_token_is_what_transformers_makes(backend: str, dtype: torch.dtype, hidden: int | None) -> None:
    config: Any = LlamaConfig()
    config._attn_implementation = backend
    like = torch.zeros(2, 1, 8, dtype=dtype)
    padding = None if hidden is None else torch.ones(2, 21, dtype=torch.bool)
    if padding is not None:
        padding[1, :hidden] = False
    sizes: Any = PhysicalSizes(20)
    found = segment_mask(config, like, 1, 20, padding)
    wanted: Any = create_causal_mask(config, like, padding, sizes, layer_idx=0, allow_is_causal_skip=padding is None)
    if wanted is not None and wanted.dtype == torch.bool and wanted.ndim == 4:  # the same, said otherwise
        wanted = torch.zeros(wanted.shape, dtype=dtype).masked_fill_(~wanted, torch.finfo(dtype).min)
    assert (found is None) == (wanted is None)
    assert wanted is None or torch.equal(found, wanted)
