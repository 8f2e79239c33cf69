"""On the meta device tensors have no values: a prefill with clips reads one number back, and nothing after that."""

import copy
from fractions import Fraction
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, VisionZip, VisPruner, ViTCoP
from vitcop_llava.hooks import opening, vision

FRAMES, TOKENS = 4, 16
SHARE: Any = {"retention_ratio": Fraction(5, 12)}
METHODS = {
    "ViTCoP": ViTCoP(**SHARE, cutoff_distance=3.0),
    "over frames": ViTCoP(**SHARE, cutoff_distance=3.0, cluster_frames=2),
    "attention": ViTCoP(**SHARE, cutoff_distance=3.0, saliency="attention"),
    "FastV": FastV(**SHARE),
    "VisionZip": VisionZip(**SHARE),
    "DivPrune": DivPrune(**SHARE),
    "VisPruner": VisPruner(**SHARE),
    "EarlyViTCoP": EarlyViTCoP(**SHARE, ranking="layer0"),
}


@pytest.fixture(scope="module")
def meta_model(video_model: Any) -> Any:
    return copy.deepcopy(video_model).to("meta")


@pytest.fixture
def no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches off the one read that is transformers' own: whether there are as many placeholders as features."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


def answer(model: Any, method: Any, rows: int, *, masked: bool) -> DynamicCache:
    """A pruned prefill of a clip a row, and two decoding steps."""
    ids = torch.empty(rows, 3 + FRAMES * TOKENS + 8, dtype=torch.int64, device="meta")
    mask = torch.empty_like(ids) if masked else None
    clips = torch.empty(rows, FRAMES, 3, 64, 64, device="meta")
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), vitcop_llava.prune(model, method):
        given = {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": clips}
        logits = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        for _ in range(2):
            token = logits[:, -1:].argmax(-1)
            mask = None if mask is None else torch.cat([mask, torch.ones_like(token)], dim=1)
            logits = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
    return cache


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("rows", "masked"), [(1, False), (3, True)])
def test_pruned_clips_read_nothing_but_their_count(
    meta_model: Any, no_check: None, monkeypatch: pytest.MonkeyPatch, rows: int, masked: bool, name: str
) -> None:
    for module in (opening, vision):
        monkeypatch.setattr(module, "check_frames", lambda *_: None)
    cache = answer(meta_model, METHODS[name], rows, masked=masked)
    whole = 3 + FRAMES * TOKENS + 8 + 2
    assert cache.get_seq_length() == whole
    last: Any = cache.layers[-1]
    assert last.keys.is_meta
    assert last.keys.shape[2] < whole - FRAMES * TOKENS // 2  # it was pruned, and not passed by


def test_count_of_placeholders_is_read(meta_model: Any, no_check: None) -> None:
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        answer(meta_model, METHODS["ViTCoP"], 1, masked=False)
