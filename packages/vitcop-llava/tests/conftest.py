"""Small random LLaVA models, prompts, pictures and budgets.

What needs the extra ``tools`` is imported where it is used: the properties of pruning are tested without the extra too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from vitcop_llava import ViTCoP

if TYPE_CHECKING:
    from PIL import Image

IMAGE_TOKEN = 99
PATCHES = 144
NEXT_TILE = 48
PINPOINTS = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
# What selects the patches of a tower, and nothing else.
STRATEGIES: dict[str, Any] = {"clip": "default", "siglip": "full"}
TEXT_CONFIGS = {
    "gemma": GemmaConfig,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo model's shape, tokenizer and image processor, and random weights."""
    from vitcop_llava.tools.demo.build import demo_processor, initialised_model, save_demo

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_demo(initialised_model(12), demo_processor(12), folder)
    return folder


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    needs_none = (
        bool({"pictures", "next_inputs"} & set(request.fixturenames)) and "gradients" not in request.node.path.name
    )
    with torch.set_grad_enabled(not needs_none):
        yield


def _vision(side: int, tower: str) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": 8,
    }
    if tower == "siglip":
        return SiglipVisionConfig(**sizes)
    return CLIPVisionConfig(**sizes, projection_dim=32)


def _text(kind: str, kv_heads: int, vocabulary: int) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    if kind == "mistral":
        sizes["sliding_window"] = None
    if kind in ("gemma", "qwen3"):
        sizes["head_dim"] = 8
    return TEXT_CONFIGS[kind](**sizes)


@cache
def _build(
    kind: str, attention: str, kv_heads: int, seed: int, *, side: int = 96, tower: str = "clip", layer: int = -2
) -> Any:
    make: Any = LlavaConfig
    config = make(
        vision_config=_vision(side, tower),
        text_config=_text(kind, kv_heads, 100),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=(side // 8) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy=STRATEGIES[tower],
    )
    return _randomised(LlavaForConditionalGeneration, config, attention, seed)


@cache
def _build_next(kind: str, attention: str, tower: str) -> Any:
    tokenizer = _next_processor().tokenizer
    config = LlavaNextConfig(
        vision_config=_vision(NEXT_TILE, tower),
        text_config=_text(kind, 2, len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy=STRATEGIES[tower],
    )
    return _randomised(LlavaNextForConditionalGeneration, config, attention, 0)


@cache
def _next_processor() -> Any:
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    from vitcop_llava.tools.demo.build import demo_processor

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": NEXT_TILE},
        crop_size={"height": NEXT_TILE, "width": NEXT_TILE},
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=demo_processor(12).tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _randomised(family: Any, config: Any, attention: str, seed: int) -> Any:
    config._attn_implementation = attention if attention in ("eager", "sdpa") else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
        for name, parameter in model.named_parameters():
            if name.endswith("k_norm.weight"):  # of ones it would give all keys the same norm
                torch.nn.init.uniform_(parameter, 0.2, 1.8)
    model.model.language_model.config._attn_implementation = attention
    # An answer that is computed again must hold no placeholder.
    model.generation_config.suppress_tokens = [config.image_token_id]
    return model.eval()


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """A model of 8 decoder layers and 144 patches an image; one object for each set of arguments.

    transformers puts hooks of its own on a model when outputs are first asked for: that has happened already.
    """

    @cache
    def make(kind: str = "llama", attention: str = "sdpa", kv_heads: int = 2, seed: int = 0, **tower: Any) -> Any:
        model = _build(kind, attention, kv_heads, seed, **tower)
        ids = torch.tensor([[1, *[IMAGE_TOKEN] * PATCHES, 5]])
        with torch.no_grad():
            model(input_ids=ids, pixel_values=torch.zeros(1, 3, 96, 96), output_hidden_states=True)
        return model

    return make


@pytest.fixture(scope="session")
def build_sized() -> Callable[[int], Any]:
    """The model for pictures of that many pixels a side, in patches of 8 x 8."""
    return lambda side: _build("llama", "sdpa", 2, 0, side=side)


@pytest.fixture(scope="session")
def model(build: Callable[..., Any]) -> Any:
    return build()


@pytest.fixture(scope="session")
def small(build: Callable[..., Any]) -> Any:
    """A model of few layers: compiling takes seconds."""
    config = copy.deepcopy(build().config)
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 2, 3
    torch.manual_seed(0)
    model = type(build())(config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    model.generation_config = build().generation_config
    return model


@pytest.fixture
def own(small: Any) -> Any:
    return copy.deepcopy(small)


@pytest.fixture
def deep(model: Any) -> Any:
    """A model of eight layers, to change."""
    return copy.deepcopy(model)


@pytest.fixture
def tape() -> Iterator[Any]:
    """What stands for a CUDA graph, for the length of a test."""
    from tape import taped

    with taped() as made:
        yield made


@pytest.fixture(scope="session")
def prompt() -> Callable[..., Tensor]:
    """``[1, L]`` ids from parts: a number stands for so many random words, ``"image"`` for placeholders."""

    def make(*parts: int | str, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        ids = [1]
        for part in parts:
            if isinstance(part, int):
                ids += torch.randint(3, IMAGE_TOKEN, (part,), generator=generator).tolist()
            else:
                ids += [IMAGE_TOKEN] * PATCHES
        return torch.tensor([ids])

    return make


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    """``[count, 3, 96, 96]`` random pictures."""

    def make(count: int = 1, seed: int = 0) -> Tensor:
        return torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(100 + seed))

    return make


@pytest.fixture(scope="session")
def pad() -> Callable[..., dict[str, Tensor]]:
    """Prompts of one row each to a padded batch."""

    def make(rows: list[Tensor], side: str = "left") -> dict[str, Tensor]:
        longest = max(row.shape[1] for row in rows)

        def padded(row: Tensor) -> Tensor:
            missing = longest - row.shape[1]
            return functional.pad(row, (missing, 0) if side == "left" else (0, missing))

        masks = [torch.ones_like(row) for row in rows]
        return {
            "input_ids": torch.cat([padded(row) for row in rows]),
            "attention_mask": torch.cat([padded(mask) for mask in masks]),
        }

    return make


@pytest.fixture
def given(prompt: Callable[..., Tensor], pictures: Callable[..., Tensor]) -> dict[str, Any]:
    """A prompt with one image."""
    ids = prompt(3, "image", 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}


@pytest.fixture
def batch(prompt: Callable[..., Tensor], pictures: Callable[..., Tensor], pad: Any) -> dict[str, Any]:
    """Rows of one image, of two and of none, padded."""
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    return {**pad(rows), "pixel_values": pictures(3)}


@pytest.fixture(scope="session")
def budget() -> Callable[..., ViTCoP]:
    """ViTCoP at a share of the tokens, with a cutoff distance that fits the small tower."""

    def make(share: str = "1/9", **settings: Any) -> ViTCoP:
        retention = {} if "ratios" in settings else {"retention_ratio": Fraction(share)}
        return ViTCoP(**{"cutoff_distance": 3.0, **retention, **settings})

    return make


@pytest.fixture(scope="session")
def build_next() -> Callable[..., Any]:
    """A LLaVA-NeXT model of 8 decoder layers and tiles of 6 x 6 patches; one object for each set of arguments."""

    @cache
    def make(kind: str = "llama", attention: str = "sdpa", tower: str = "clip") -> Any:
        model = _build_next(kind, attention, tower)
        ids = torch.tensor([[1, *[model.config.image_token_id] * 114, 5]])
        with torch.no_grad():
            given = {
                "pixel_values": torch.zeros(1, 3, 3, NEXT_TILE, NEXT_TILE),
                "image_sizes": torch.tensor([[48, 96]]),
            }
            model(input_ids=ids, **given, output_hidden_states=True)
        return model

    return make


@pytest.fixture(scope="session")
def next_model(build_next: Callable[..., Any]) -> Any:
    return build_next()


@pytest.fixture(scope="session")
def next_processor() -> Any:
    return _next_processor()


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Image.Image]:
    """A picture of a width and height, read from a PNG or JPEG file."""
    from PIL import Image

    from vitcop_llava.tools.media.images import read_image

    folder = tmp_path_factory.mktemp("photos")

    @cache
    def make(width: int, height: int, kind: str = "png", seed: int = 0) -> Image.Image:
        rng = np.random.default_rng([width, height, seed])
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        path = folder / f"{width}x{height}-{seed}.{kind}"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        return read_image(path)

    return make


@pytest.fixture(scope="session")
def next_inputs(photo: Callable[..., Image.Image]) -> Callable[..., dict[str, Any]]:
    """LLaVA-NeXT's inputs, by transformers' own processor, from rows of parts.

    A number stands for so many words, a pair for a picture of that width and height.
    """
    words = "what color is the circle and where".split()

    def make(rows: list[list[Any]], side: str = "left", seed: int = 0) -> dict[str, Any]:
        texts, images = [], []
        for row in rows:
            text = []
            for part in row:
                if isinstance(part, int):
                    text += [words[(seed + k) % len(words)] for k in range(part)]
                else:
                    text.append("<image>")
                    images.append(photo(*part, kind=("png", "jpg")[sum(part) % 2], seed=seed))
            texts.append(" ".join(text))
        inputs = _next_processor()(
            text=texts, images=images or None, padding=True, padding_side=side, return_tensors="pt"
        )
        return {
            name: inputs[name]
            for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes")
            if name in inputs
        }

    return make
