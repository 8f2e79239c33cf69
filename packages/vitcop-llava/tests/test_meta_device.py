"""On the meta device tensors have shapes and no values: what runs there reads nothing back, and mixes no devices.

What a prefill has to know of its prompt is left out there, by the sources; everything after that runs as on a GPU.
"""

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_core.plan import DecoderCut
from vitcop_core.tokens import DecoderView, Selection
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP

# A picture of 96 x 96: one tile, or four tiles of 6 x 6 patches and the whole of it, with a newline after each line.
PLACEHOLDERS = {"llava": 144, "next": 36 + 12 * 13}
SHARE: Any = {"retention_ratio": Fraction(5, 12)}
METHODS = {
    "ViTCoP": ViTCoP(**SHARE, cutoff_distance=3.0),
    "official": ViTCoP(**SHARE, cutoff_distance=3.0, compat="official"),
    "attention": ViTCoP(**SHARE, cutoff_distance=3.0, saliency="attention"),
    **{type(method).__name__: method for method in (FastV(**SHARE), PyramidDrop(**SHARE), SparseVLM(**SHARE))},
    "VisionZip": VisionZip(**SHARE),
    "DivPrune": DivPrune(**SHARE),
    "VisPruner": VisPruner(**SHARE),
    "EarlyViTCoP": EarlyViTCoP(**SHARE, ranking="layer0"),
}


@pytest.fixture
def no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches off the one read that is transformers' own: whether there are as many placeholders as features."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


@pytest.fixture(scope="module")
def models(build: Callable[..., Any], build_next: Callable[..., Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(make()).to("meta") for name, make in (("llava", build), ("next", build_next))}


def inputs(family: str, rows: int, *, masked: bool = True) -> dict[str, Any]:
    ids = torch.empty(rows, 3 + PLACEHOLDERS[family] + 8, dtype=torch.int64, device="meta")
    given: dict[str, Any] = {"input_ids": ids}
    if masked:
        given["attention_mask"] = torch.empty_like(ids)
    if family == "llava":
        return given | {"pixel_values": torch.empty(rows, 3, 96, 96, device="meta")}
    tiles = torch.empty(rows, 5, 3, 48, 48, device="meta")
    return given | {"pixel_values": tiles, "image_sizes": [(96, 96)] * rows}


def answer(model: Any, method: Any, given: dict[str, Any]) -> DynamicCache:
    """A pruned prefill and two decoding steps."""
    ids, mask, cache = given["input_ids"], given.get("attention_mask"), DynamicCache(config=model.config)
    with torch.no_grad(), vitcop_llava.prune(model, method):
        logits = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        for _ in range(2):
            token = logits[:, -1:].argmax(-1)
            mask = None if mask is None else torch.cat([mask, torch.ones_like(token)], dim=1)
            logits = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
    assert logits.shape[:2] == (ids.shape[0], 1)
    return cache


# Batch and mask are none of a method's: the first runs with all four pairs, the others with the one that does most.
CALLS = [(rows, masked, name) for rows in (1, 3) for masked in (False, True) for name in METHODS]
CALLS = [call for call in CALLS if call[2] == "ViTCoP" or call[:2] == (3, True)]


@pytest.mark.parametrize(("rows", "masked", "name"), CALLS)
@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_pruned_model_reads_nothing_back(
    models: Any, no_check: None, family: str, rows: int, masked: bool, name: str
) -> None:
    given = inputs(family, rows, masked=masked)
    cache = answer(models[family], METHODS[name], given)
    whole = given["input_ids"].shape[1] + 2
    assert cache.get_seq_length() == whole
    last: Any = cache.layers[-1]
    assert last.keys.is_meta
    assert last.keys.shape[2] < whole - PLACEHOLDERS[family] // 2  # it was pruned, and not passed by


def test_what_ran_there_concerns_no_later_call(models: Any, build: Callable[..., Any], no_check: None) -> None:
    answer(models["llava"], METHODS["ViTCoP"], inputs("llava", 1))
    model, generator = build(), torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 4, 5, *[99] * PLACEHOLDERS["llava"], 7, 8]])
    pixels = torch.randn(1, 3, 96, 96, generator=generator)
    how: Any = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    plain = model.generate(input_ids=ids, pixel_values=pixels, **how)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)):
        assert torch.equal(model.generate(input_ids=ids, pixel_values=pixels, **how), plain)


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda seen: seen.sum().item(),
    "bool": lambda seen: bool((seen > 0).any()),
    "tolist": lambda seen: seen.tolist(),
    "to the host": lambda seen: seen.cpu().numpy(),
    "by mask": lambda seen: seen[seen > 0],
    "from the host": lambda seen: seen + torch.ones(seen.shape, device="cpu"),
}


@pytest.mark.parametrize("how", READS)
def test_cut_that_reads_is_noticed(models: Any, no_check: None, how: str) -> None:
    class Reading(FastV):
        def cut_decoder(self, cut: DecoderCut, seen: DecoderView, keeps: Tensor | None = None) -> Selection:
            READS[how](seen.attention())
            return super().cut_decoder(cut, seen, keeps)

    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        answer(models["llava"], Reading(**SHARE), inputs("llava", 3))


def test_sizes_that_are_on_the_device_are_read(models: Any, no_check: None) -> None:
    given = inputs("next", 3)
    given["image_sizes"] = torch.empty(3, 2, dtype=torch.int64, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        answer(models["next"], METHODS["ViTCoP"], given)


def test_transformers_own_check_reads(models: Any) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        models["llava"](**inputs("llava", 1))
