"""Keeping every token is the unpatched model, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import ViTCoP

KEEP_ALL = ViTCoP(retention_ratio=1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_keep_all_forward_equals_unpatched(
    build: Callable[..., Any], prompt: Callable[..., Tensor], pictures: Callable[..., Tensor], kind: str, attention: str
) -> None:
    model = build(kind, attention)
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, KEEP_ALL):
        kept = model(**given, output_hidden_states=True)
    plain = model(**given, output_hidden_states=True)
    assert torch.equal(kept.logits, plain.logits)
    assert all(torch.equal(a, b) for a, b in zip(kept.hidden_states, plain.hidden_states, strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
def test_keep_all_batch_equals_unpatched(
    model: Any,
    prompt: Callable[..., Tensor],
    pictures: Callable[..., Tensor],
    pad: Callable[..., dict[str, Tensor]],
    side: str,
) -> None:
    rows = [prompt("image", 8), prompt(2, "image", 3, "image", 4), prompt(20)]
    given = {**pad(rows, side), "pixel_values": pictures(3)}
    with vitcop_llava.prune(model, KEEP_ALL):
        kept = model(**given).logits
    assert torch.equal(kept, model(**given).logits)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"use_cache": False}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "beams", "no-cache", "sampled"],
)
def test_keep_all_generate_equals_unpatched(
    model: Any, prompt: Callable[..., Tensor], pictures: Callable[..., Tensor], settings: dict[str, Any]
) -> None:
    ids = prompt(3, "image", 8)
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pictures(),
        "max_new_tokens": 4,
        "output_logits": True,
        "return_dict_in_generate": True,
        "do_sample": False,
        **settings,
    }
    outputs = []
    for method in (KEEP_ALL, None):
        torch.manual_seed(0)
        if method is None:
            outputs.append(model.generate(**given))
        else:
            with vitcop_llava.prune(model, method):
                outputs.append(model.generate(**given))
    kept, plain = outputs
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


def test_keep_all_takes_caches_that_cannot_be_pruned(
    model: Any, prompt: Callable[..., Tensor], pictures: Callable[..., Tensor]
) -> None:
    from transformers import StaticCache

    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, KEEP_ALL) as pruner:
        kept = model(**given, past_key_values=StaticCache(config=model.config, max_cache_len=200)).logits
    plain = model(**given, past_key_values=StaticCache(config=model.config, max_cache_len=200)).logits
    assert torch.equal(kept, plain)
    assert "keeps every token" in str(pruner.report)
