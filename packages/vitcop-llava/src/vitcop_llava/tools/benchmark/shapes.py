"""Models of a known checkpoint's shape with random weights: time depends on shapes, not on what the weights say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
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
class FlatVision:
    """A tower of Qwen's, which takes images of any size as flat patches and makes a token of each square of 2 x 2.

    Attributes:
        hidden, intermediate, layers, heads: As of `Vision`.
        patch: Side of a patch in pixels.
        window: Side of a window in pixels, in Qwen2.5-VL.
        whole: Layers that see an image as a whole, in Qwen2.5-VL; the others see windows alone.
        deepstack: Layers whose output goes to the decoder's first layers, in Qwen3-VL.
    """

    hidden: int = 1280
    intermediate: int = 3420
    layers: int = 32
    heads: int = 16
    patch: int = 14
    window: int = 112
    whole: tuple[int, ...] = (7, 15, 23, 31)
    deepstack: tuple[int, ...] = ()


@dataclass(frozen=True)
class Language:
    """A Llama or Qwen: width, feed-forward width, layers, query heads, key-value heads, and words."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    words: int = 32064


@dataclass(frozen=True)
class Shape:
    """Everything that the time of a model depends on.

    Attributes:
        family: ``"llava"``, ``"llava_next"``, ``"llava_next_video"``, ``"qwen2_5_vl"`` or ``"qwen3_vl"``.
        vision: The tower.
        language: The language model.
    """

    family: str
    vision: Vision | FlatVision
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
# The sizes of Qwen/Qwen2.5-VL-7B-Instruct and Qwen/Qwen3-VL-8B-Instruct, as the config.json of each has them. What they
# share with transformers' defaults for these classes is all of the towers but the width that they give.
_QWEN25_TOWER, _QWEN3_TOWER = (
    FlatVision(),
    FlatVision(hidden=1152, intermediate=4304, layers=27, patch=16, deepstack=(8, 16, 24)),
)
_QWEN25_7B = Language(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, words=152064)
_QWEN3_8B = Language(hidden=4096, intermediate=12288, layers=36, heads=32, kv_heads=8, words=151936)
_FLAT_SMALL = FlatVision(hidden=64, intermediate=96, layers=4, heads=4, whole=(1, 3), deepstack=(0, 1, 2))

SHAPES = {
    "llava-1.5-7b": Shape("llava", _CLIP_LARGE, _7B),
    "llava-1.5-13b": Shape("llava", _CLIP_LARGE, _13B),
    "llava-next-7b": Shape("llava_next", _CLIP_LARGE, _7B),
    "llava-next-13b": Shape("llava_next", _CLIP_LARGE, _13B),
    "llava-next-video-7b": Shape("llava_next_video", _CLIP_LARGE, _7B),
    "qwen2.5-vl-7b": Shape("qwen2_5_vl", _QWEN25_TOWER, _QWEN25_7B),
    "qwen3-vl-8b": Shape("qwen3_vl", _QWEN3_TOWER, _QWEN3_8B),
    "medium": Shape("llava", _CLIP_LARGE, _1B),
    "medium-next": Shape("llava_next", _CLIP_LARGE, _1B),
    "medium-video": Shape("llava_next_video", _CLIP_LARGE, _1B),
    "quarter": Shape("llava", _CLIP_QUARTER, _QUARTER),
    "narrow": Shape("llava", _CLIP_NARROW, _NARROW),
    "small": Shape("llava", _CLIP_SMALL, _SMALL),
    "small-next": Shape("llava_next", _CLIP_TINY, _SMALL),
    "small-video": Shape("llava_next_video", _CLIP_TINY, _SMALL),
    "small-qwen2.5": Shape("qwen2_5_vl", _FLAT_SMALL, _SMALL),
    "small-qwen3": Shape("qwen3_vl", _FLAT_SMALL, _SMALL),
}
"""By name. The medium ones have the language model of TinyLlama. The quarter is LLaVA-1.5-7B at a quarter of its width
and three eighths of its depth, tower and language model alike, so that each takes the share of the time that it has
there. The narrow one has as many layers as the 7B, and so little in each that the host's time is all there is to see.
The small ones are for tests."""

_TILES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_NOISE = 1_000_003


def _llava(shape: Shape, kind: Any) -> Any:
    """Return the configuration of a LLaVA with a CLIP tower, as the class ``kind``."""
    vision, text = shape.vision, shape.language
    assert isinstance(vision, Vision)  # as the table above has it
    given: dict[str, Any] = {"image_token_index": 32000}
    if shape.family != "llava":
        given["image_grid_pinpoints"] = [[down * vision.side, across * vision.side] for down, across in _TILES]
    if shape.family == "llava_next_video":
        given |= {"image_token_index": 32001, "video_token_index": 32000}
    return kind(
        vision_config=CLIPVisionConfig(
            hidden_size=vision.hidden,
            intermediate_size=vision.intermediate,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=vision.side,
            patch_size=14,
        ),
        text_config=LlamaConfig(vocab_size=text.words, max_position_embeddings=4096, **_sizes(text)),
        **given,
    )


def _qwen(shape: Shape, kind: Any) -> Any:
    """Return the configuration of a Qwen2.5-VL or Qwen3-VL, as the class ``kind``."""
    vision, text, own = shape.vision, shape.language, dict[str, Any]()
    assert isinstance(vision, FlatVision)  # as the table above has it
    width = text.hidden // text.heads
    # As the checkpoints turn: numbers of each head by time, row and column.
    sections = [width // 2 - 2 * (width // 16 * 3), width // 16 * 3, width // 16 * 3]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    if shape.family == "qwen3_vl":
        rope |= {"rope_theta": 5e6, "mrope_interleaved": True}
        own["deepstack_visual_indexes"] = [*vision.deepstack]
    else:
        own |= {"window_size": vision.window, "fullatt_block_indexes": [*vision.whole]}
    tokens = ("vision_start", "vision_end", "image", "video")
    first = text.words - 2 * len(tokens)  # the last words are no checkpoint's
    return kind(
        vision_config=own
        | {
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.intermediate,
            "num_heads": vision.heads,
            "patch_size": vision.patch,
            "out_hidden_size": text.hidden,
        },
        text_config=_sizes(text)
        | {"vocab_size": text.words, "max_position_embeddings": 128000, "rope_parameters": rope}
        | ({"head_dim": width} if shape.family == "qwen3_vl" else {}),
        **{f"{name}_token_id": first + number for number, name in enumerate(tokens)},
    )


def _sizes(text: Language) -> dict[str, Any]:
    return {
        "hidden_size": text.hidden,
        "intermediate_size": text.intermediate,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
    }


_CLASSES: dict[str, tuple[Callable[[Shape, Any], Any], Any, Any]] = {
    "llava": (_llava, LlavaConfig, LlavaForConditionalGeneration),
    "llava_next": (_llava, LlavaNextConfig, LlavaNextForConditionalGeneration),
    "llava_next_video": (_llava, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration),
    "qwen2_5_vl": (_qwen, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (_qwen, Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


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
    configure, config_kind, kind = _CLASSES[shape.family]
    config = configure(shape, partial(config_kind, attn_implementation=attention))
    config.dtype = dtype
    with torch.device("meta"):
        return kind(config).to(dtype).eval()


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
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
            _fill(module.weight.data, noise, module.weight[0].numel() ** -0.5)
    for label, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(0.0 if label.endswith("bias") else 1.0)
    _restore_buffers(model)
    return model.eval()  # its new parts too


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
    base: Any = model.model
    language = base.language_model
    language.rotary_emb = type(language.rotary_emb)(config=language.config).to(model.device)
    if hasattr(base, "visual"):
        rotary: Any = base.visual.rotary_pos_emb
        base.visual.rotary_pos_emb = type(rotary)(base.visual.config).to(model.device)
        return
    embeddings = base.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=model.device)[None]
