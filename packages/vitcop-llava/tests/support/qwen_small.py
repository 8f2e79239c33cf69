"""Small models of Qwen-VL's families with random weights, prompts for them, and what their squares receive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

IMAGE, VIDEO, START, END = 90, 91, 92, 93
PATCH = 3 * 2 * 4 * 4
VISION: dict[str, Any] = {
    "depth": 4,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
ADDED: dict[str, Any] = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
SPARSE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "qwen2": (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        VISION | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        {},
    ),
    "qwen2.5": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        VISION | WIDE | {"window_size": 16, "fullatt_block_indexes": [1, 2]},
        {},
    ),
    "qwen3": (Qwen3VLConfig, Qwen3VLForConditionalGeneration, VISION | WIDE | ADDED, {"head_dim": 8}),
    "qwen3-moe": (
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        VISION | WIDE | ADDED,
        SPARSE | {"head_dim": 8},
    ),
}


@cache
def build(family: str, attention: str = "sdpa") -> Any:
    """A model with random weights, 8 decoder layers, and rotations of 4 numbers by three axes."""
    configuration, kind, vision, more = FAMILIES[family]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "rope_parameters": rope | ({"mrope_interleaved": True} if "qwen3" in family else {}),
    }
    tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    config = configuration(vision_config=vision, text_config=text | more, vision_end_token_id=END, **tokens)
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, START]
    return model.eval()


@dataclass(frozen=True)
class Shown:
    """An image of so many rows and columns of patches, or a clip of several steps."""

    rows: int
    columns: int
    steps: int = 0
    seed: int = 0

    @property
    def grid(self) -> tuple[int, int, int]:
        return max(self.steps, 1), self.rows, self.columns

    @property
    def tokens(self) -> int:
        return max(self.steps, 1) * self.rows * self.columns // 4

    @property
    def patches(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 100 * self.rows + self.columns)
        return torch.randn(4 * self.tokens, PATCH, generator=generator)


WIDE_ONE, TALL_ONE, SQUARE = Shown(8, 12), Shown(20, 4), Shown(8, 8, seed=1)
Row = Sequence[int | Shown]


def given(rows: Sequence[Row], family: str = "qwen2", side: str = "left") -> dict[str, Tensor]:
    """A batch as the processor makes it: of each row images, clips and numbers of tokens of text."""
    ids, shown = [], list[Shown]()
    for row in rows:
        found = [1]
        for number, part in enumerate(row):
            if isinstance(part, int):
                found += [2 + (7 * number + 3 * place) % 80 for place in range(part)]
                continue
            shown.append(part)
            token, runs = (VIDEO, part.steps) if part.steps else (IMAGE, 1)
            runs = runs if family.startswith("qwen3") else 1
            for step in range(runs):  # Qwen3-VL's clips are told step by step, a timestamp before each
                found += [*[60 + step] * (runs > 1), START, *[token] * (part.tokens // runs), END]
        ids.append(found)
    length = max(map(len, ids))
    padded = [[0] * (length - len(row)) + row if side == "left" else row + [0] * (length - len(row)) for row in ids]
    mask = [
        [0] * (length - len(row)) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * (length - len(row))
        for row in ids
    ]
    tokens = torch.tensor(padded)
    inputs = {"input_ids": tokens, "attention_mask": torch.tensor(mask), "mm_token_type_ids": kinds_of(tokens)}
    for pixels, grids, own in (
        ("pixel_values", "image_grid_thw", [each for each in shown if not each.steps]),
        ("pixel_values_videos", "video_grid_thw", [each for each in shown if each.steps]),
    ):
        if own:
            inputs[pixels] = torch.cat([each.patches for each in own])
            inputs[grids] = torch.tensor([each.grid for each in own])
    return inputs


def kinds_of(ids: Tensor) -> Tensor:
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


MIXED: list[Row] = [[3, WIDE_ONE, 5], [TALL_ONE, 2, SQUARE, 9], [6]]
CLIP = Shown(8, 8, steps=3)


def received(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What each square of each unit receives, from the tower's own attention maps of the last layer that sees all."""
    tower, kept = model.model.visual, list[Tensor]()
    whole = getattr(tower, "fullatt_block_indexes", None)
    scored = tower.blocks[max(whole) if whole else len(tower.blocks) - 1].attn
    states: dict[str, Any] = {}
    handle = scored.register_forward_pre_hook(
        lambda _, args, kwargs: states.update(kwargs, x=args[0]), with_kwargs=True
    )
    tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    handle.remove()
    heads = scored.num_heads
    queries, keys, _ = scored.qkv(states["x"]).view(len(states["x"]), 3, heads, -1).unbind(1)
    order = torch.arange(len(queries) // 4)
    if tower.config.model_type.startswith("qwen2_5"):
        from transformers.vision_utils import get_vision_window_index

        order, _ = get_vision_window_index(inputs["image_grid_thw"], 2, tower.window_size, tower.patch_size)
    cosines, sines = (part.float()[:, None] for part in states["position_embeddings"])
    half = queries.shape[-1] // 2
    queries, keys = (
        each * cosines + torch.cat([-each[..., half:], each[..., :half]], -1) * sines for each in (queries, keys)
    )
    back = torch.argsort(order)
    queries, keys = (each.unflatten(0, (-1, 4))[back].flatten(0, 1) for each in (queries, keys))
    start = 0
    for _, rows, columns in inputs["image_grid_thw"].tolist():
        own = slice(start, start + rows * columns)
        scores = torch.einsum("qhe,khe->hqk", queries[own], keys[own]) * scored.scaling
        kept.append(scores.softmax(-1).mean((0, 1)).view(-1, 4).mean(1))
        start += rows * columns
    return kept
