"""Clips in a static cache: the tokens of the dynamic one, in buffers that each layer's plan sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vitcop_llava
from vitcop_llava import FastV, ViTCoP

Inputs = Callable[..., dict[str, Any]]
METHODS = [ViTCoP(retention_ratio=1 / 3, cutoff_distance=3.0), FastV(retention_ratio=0.5)]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


@by_name
@pytest.mark.parametrize("beams", [1, 2])
def test_generates_as_with_a_dynamic_cache(video_model: Any, video_inputs: Inputs, method: Any, beams: int) -> None:
    given = {**video_inputs([[2, "clip4", 3], [4, "clip4"]]), "max_new_tokens": 4, "num_beams": beams}
    with vitcop_llava.prune(video_model, method):
        wanted = video_model.generate(**given)
        assert torch.equal(video_model.generate(**given, cache_implementation="static"), wanted)


@by_name
def test_turns_equal_those_of_a_dynamic_cache(video_model: Any, video_inputs: Inputs, method: Any) -> None:
    first, second = video_inputs([[2, "clip4", 4]]), video_inputs([["clip2", 3]])
    words = video_inputs([[5]])["input_ids"][:, 1:]
    del first["attention_mask"], second["attention_mask"]
    outputs = []
    with vitcop_llava.prune(video_model, method) as pruner:
        for cache in (DynamicCache(), StaticCache(config=video_model.config.text_config, max_cache_len=300)):
            before = video_model(**first, past_key_values=cache)
            plan = pruner.report.rows[0].plan
            assert plan is not None
            layers: Any = cache.layers
            if isinstance(cache, StaticCache):
                lost = [plan.visual_tokens - tokens for tokens in plan.tokens_per_layer]
                assert [layer.keys.shape[2] for layer in layers] == [300 - less for less in lost]
            turn = video_model(input_ids=words, past_key_values=cache)
            joined = video_model(**second, past_key_values=cache)
            step = video_model(input_ids=words[:, :1], past_key_values=cache)
            outputs.append([each.logits for each in (before, turn, joined, step)])
    for found, wanted in zip(*outputs, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
