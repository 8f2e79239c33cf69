"""Models of a known checkpoint's shape with random weights: time depends on shapes, not on what the weights say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)


@dataclass(frozen=True)
class Vision:
    """A CLIP tower: width, feed-forward width, layers, heads, and the side of an image in pixels (patches of 14)."""

    hidden: int = 1024
    intermediate: int = 4096
    layers: int = 24
    heads: int = 16
    side: int = 336


@dataclass(frozen=True)
class Language:
    """A Llama: width, feed-forward width, layers, query heads and key-value heads."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Shape:
    """Everything that the time of a model depends on.

    Attributes:
        family: ``"llava"``, ``"llava_next"`` or ``"llava_next_video"``.
        vision: The tower.
        language: The language model.
    """

    family: str
    vision: Vision
    language: Language


_CLIP_QUARTER = Vision(hidden=256, intermediate=1024, layers=9, heads=4)
_CLIP_LARGE, _CLIP_SMALL = Vision(), Vision(hidden=64, intermediate=128, layers=3, heads=4)
_CLIP_NARROW = Vision(hidden=32, intermediate=64, layers=24, heads=4, side=84)
_CLIP_TINY = Vision(hidden=64, intermediate=128, layers=3, heads=4, side=168)
_7B = Language(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32)
_13B = Language(hidden=5120, intermediate=13824, layers=40, heads=40, kv_heads=40)
_QUARTER = Language(hidden=1024, intermediate=2752, layers=12, heads=8, kv_heads=8)
_1B = Language(hidden=2048, intermediate=5632, layers=22, heads=32, kv_heads=4)
_NARROW = Language(hidden=32, intermediate=64, layers=32, heads=4, kv_heads=4)
_SMALL = Language(hidden=64, intermediate=128, layers=8, heads=4, kv_heads=4)

SHAPES = {
    "llava-1.5-7b": Shape("llava", _CLIP_LARGE, _7B),
    "llava-1.5-13b": Shape("llava", _CLIP_LARGE, _13B),
    "llava-next-7b": Shape("llava_next", _CLIP_LARGE, _7B),
    "llava-next-13b": Shape("llava_next", _CLIP_LARGE, _13B),
    "llava-next-video-7b": Shape("llava_next_video", _CLIP_LARGE, _7B),
    "medium": Shape("llava", _CLIP_LARGE, _1B),
    "medium-next": Shape("llava_next", _CLIP_LARGE, _1B),
    "medium-video": Shape("llava_next_video", _CLIP_LARGE, _1B),
    "quarter": Shape("llava", _CLIP_QUARTER, _QUARTER),
    "narrow": Shape("llava", _CLIP_NARROW, _NARROW),
    "small": Shape("llava", _CLIP_SMALL, _SMALL),
    "small-next": Shape("llava_next", _CLIP_TINY, _SMALL),
    "small-video": Shape("llava_next_video", _CLIP_TINY, _SMALL),
}
"""By name. The medium ones have the language model of TinyLlama. The quarter is LLaVA-1.5-7B at a quarter of its width
and three eighths of its depth, tower and language model alike, so that each takes the share of the time that it has
there. The narrow one has as many layers as the 7B, and so little in each that the host's time is all there is to see.
The small ones are for tests."""

_CLASSES: dict[str, tuple[Any, Any]] = {
    "llava": (LlavaConfig, LlavaForConditionalGeneration),
    "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration),
    "llava_next_video": (LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration),
}
_TILES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_NOISE = 1_000_003


def skeleton(shape: Shape, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Return the model without its weights, on the meta device.

    Args:
        shape: What it looks like.
        dtype: Of its weights.
        attention: The backend, as in transformers' ``attn_implementation``.

    Raises:
        ImportError: The backend is a package that is not installed.
        ValueError: There is no such backend.
    """
    make_config, make_model = _CLASSES[shape.family]
    side, text = shape.vision.side, shape.language
    given: dict[str, Any] = {"image_token_index": 32000}
    if shape.family != "llava":
        given["image_grid_pinpoints"] = [[down * side, across * side] for down, across in _TILES]
    if shape.family == "llava_next_video":
        given |= {"image_token_index": 32001, "video_token_index": 32000}
    config = make_config(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.vision.hidden,
            intermediate_size=shape.vision.intermediate,
            num_hidden_layers=shape.vision.layers,
            num_attention_heads=shape.vision.heads,
            image_size=side,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            max_position_embeddings=4096,
            hidden_size=text.hidden,
            intermediate_size=text.intermediate,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            num_key_value_heads=text.kv_heads,
        ),
        attn_implementation=attention,
        **given,
    )
    config.dtype = dtype
    with torch.device("meta"):
        return make_model(config).to(dtype).eval()


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters, those without weights yet included."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def random_model(
    shape: Shape, dtype: torch.dtype, device: torch.device | str, attention: str = "sdpa", seed: int = 0
) -> Any:
    """Return a model with random weights, built without ever holding it twice; arguments as `skeleton`'s."""
    model = skeleton(shape, dtype, attention).to_empty(device=device)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(_NOISE, generator=generator, dtype=torch.float32, device="cpu").to(dtype).to(device)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            _fill(module.weight.data, noise, module.weight[0].numel() ** -0.5)
    for label, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(0.0 if label.endswith("bias") else 1.0)
    _restore_buffers(model)
    return model


def _fill(weight: Tensor, noise: Tensor, scale: float) -> None:
    """Repeat the noise over a weight: drawing seven billion numbers would take longer than the measurement."""
    scaled = noise * scale
    for part in _parts(weight.view(-1), len(scaled)):
        part.copy_(scaled[: len(part)])


def _parts(flat: Tensor, length: int) -> Iterator[Tensor]:
    for start in range(0, flat.numel(), length):
        yield flat[start : start + length]


def _restore_buffers(model: Any) -> None:
    """Recompute what a model made on the meta device lacks: rotary frequencies and position indices."""
    language = model.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config=language.config).to(model.device)
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=model.device)[None]
