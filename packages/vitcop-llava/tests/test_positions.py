"""Positions are given once; every layer's cache holds what the plan says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import vitcop_llava
from vitcop_llava.hooks.attending import rotations

Make = Callable[..., Tensor]


def spied(model: Any) -> tuple[dict[int, Tensor], list[Any]]:
    """What each layer gets as cosines, by layer, in the order of calls; and the handles."""
    seen: dict[int, Tensor] = {}

    def look(number: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            seen[number] = kwargs["position_embeddings"][0]

        return hook

    attentions = [layer.self_attn for layer in model.model.language_model.layers]
    handles = [a.register_forward_pre_hook(look(n), with_kwargs=True) for n, a in enumerate(attentions)]
    return seen, handles


def angles(model: Any, positions: Tensor) -> Tensor:
    cosines: Tensor = model.model.language_model.rotary_emb(torch.zeros(1, 1, 1), positions[None])[0]
    return cosines


@pytest.mark.parametrize("share", ["1/3", "2/9", "1/9", "1/18"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_positions_are_compact_at_entry_and_kept_through_cuts(
    build: Any, prompt: Make, pictures: Make, budget: Any, kind: str, share: str
) -> None:
    model, ids = build(kind), prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget(share)) as pruner:
        cache = DynamicCache(config=model.config)
        seen, handles = spied(model)
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        plan: Any = pruner.report.rows[0].plan
        survivors = pruner.survivors()
        entry = survivors.stages[0].patches.tolist()
        for layer in range(8):
            number = 0 if layer < plan.decoder[0].layer else 1 if layer < plan.decoder[1].layer else 2
            stage = [entry.index(patch) + 4 for patch in survivors.stages[number].patches.tolist()]
            wanted = [*range(4), *stage, *range(4 + len(entry), 12 + len(entry))]
            assert torch.equal(seen[layer], angles(model, torch.tensor(wanted)))
        for step in range(3):
            model(input_ids=ids[:, :1], past_key_values=cache)
            assert all(
                torch.equal(found, angles(model, torch.tensor([12 + len(entry) + step]))) for found in seen.values()
            )
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("share", ["1/3", "2/9", "1/9", "1/18"])
def test_cache_lengths_and_bytes_equal_the_plans(
    model: Any, prompt: Make, pictures: Make, budget: Any, share: str
) -> None:
    ids = prompt(3, "image", 4, "image", 8)
    text = ids.shape[1] - 288
    with vitcop_llava.prune(model, budget(share)) as pruner:
        output = model(input_ids=ids, pixel_values=pictures(2))
        plan: Any = pruner.report.rows[0].plan
        shape = pruner.report.shape
    layers = output.past_key_values.layers
    assert [layer.keys.shape[2] for layer in layers] == [text + tokens for tokens in plan.tokens_per_layer]
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == plan.kv_bytes(shape, text, 4)
    assert pruner.report.kv_bytes()[0] == plan.kv_bytes(shape, text, 4)
    assert {layer.get_seq_length() for layer in layers} == {ids.shape[1]}
    assert output.past_key_values.get_seq_length() == ids.shape[1]


@pytest.mark.parametrize("share", ["1/3", "1/9"])
def test_decode_steps_append_one_slot_everywhere(
    model: Any, prompt: Make, pictures: Make, budget: Any, share: str
) -> None:
    ids = prompt(3, "image", 8)
    cache: Any = DynamicCache(config=model.config)
    with vitcop_llava.prune(model, budget(share)):
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        before = [layer.keys.shape[2] for layer in cache.layers]
        for _ in range(3):
            model(input_ids=ids[:, :1], past_key_values=cache)
    assert [layer.keys.shape[2] for layer in cache.layers] == [length + 3 for length in before]
    assert cache.get_seq_length() == ids.shape[1] + 3


@pytest.mark.parametrize("settings", [{"deep_positions": "reindexed"}, {"compat": "official"}], ids=str)
def test_reindexed_positions_count_from_an_image_that_begins_the_call(
    model: Any, prompt: Make, pictures: Make, budget: Any, settings: dict[str, Any]
) -> None:
    """Also where Stage II drops the first token that entered: what the text's are depends on counts alone."""
    ids, seen = prompt(6, "image", 4), set[tuple[int, ...]]()
    with vitcop_llava.prune(model, budget(cutoff_distance=3.0, **settings)):
        for seed in range(8):
            whole = model(input_ids=ids, pixel_values=pictures(seed=seed)).logits[:, -4:]
            cache = DynamicCache()
            model(input_ids=ids[:, :7], past_key_values=cache)  # words, and nothing of the image
            found = model(input_ids=ids[:, 7:], pixel_values=pictures(seed=seed), past_key_values=cache).logits[:, -4:]
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
            layer = model.model.language_model.layers[-1]
            with deep_positions(layer) as given:
                model(input_ids=ids[:, 7:], pixel_values=pictures(seed=seed))
            seen.add(tuple(given[0][0, -4:].tolist()))
    assert len(seen) == 1


@contextmanager
def deep_positions(layer: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The position ids that a layer is given."""
    found = list[Tensor]()

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["position_ids"])

    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    handle.remove()


def test_reindexed_positions_restart_in_the_deep_layers(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with vitcop_llava.prune(model, budget(deep_positions="reindexed")) as pruner:
        seen, handles = spied(model)
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
        for handle in handles:
            handle.remove()
        shallow, deep = (stage.patches.tolist() for stage in pruner.survivors().stages[1:])
    stage = [4 + shallow.index(patch) for patch in deep]
    wanted = [*range(4), *stage, *range(4 + len(shallow), 12 + len(shallow))]
    assert torch.equal(seen[7], angles(model, torch.tensor(wanted)))


LEARNED = 32
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 2.0},
    "longrope": {"factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ROPES)
def test_rotations_of_several_positions_are_those_of_each(kind: str, dtype: torch.dtype) -> None:
    """Also where a call turns all positions by how large its largest is, beyond what was learned or not."""
    learned = {"original_max_position_embeddings": LEARNED} if kind in ("llama3", "yarn", "longrope") else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, **ROPES[kind], **learned}
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 2 * LEARNED}
    config, like = LlamaConfig(**sizes, rope_parameters=rope), torch.zeros(2, 1, 64, dtype=dtype)
    positions = [torch.tensor([[70], [20]]), torch.tensor([[40]]), torch.tensor([[10], [30]])]
    parts: Any = SimpleNamespace(rotary=LlamaRotaryEmbedding(config))
    found, own = rotations(parts, like, positions), LlamaRotaryEmbedding(config)
    for turns, each in zip(found, positions, strict=True):
        assert all(map(torch.equal, turns, own(like, each)))
