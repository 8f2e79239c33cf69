"""Small random LLaVA models, prompts, pictures and budgets."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

from vitcop_llava import ViTCoP

IMAGE_TOKEN = 99
PATCHES = 144
TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    needs_none = "pictures" in request.fixturenames and "gradients" not in request.node.path.name
    with torch.set_grad_enabled(not needs_none):
        yield


@cache
def _build(kind: str, attention: str, kv_heads: int, seed: int) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=96,
        patch_size=8,
        projection_dim=32,
    )
    sizes: dict[str, Any] = {
        "vocab_size": 100,
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
    make: Any = LlavaConfig
    config = make(
        vision_config=vision,
        text_config=TEXT_CONFIGS[kind](**sizes),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=PATCHES,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = attention if attention in ("eager", "sdpa") else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    model.model.language_model.config._attn_implementation = attention
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]  # an answer that is computed again must hold no placeholder
    return model.eval()


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """A model of 8 decoder layers and 144 patches an image; one object for each set of arguments.

    transformers puts hooks of its own on a model when outputs are first asked for: that has happened already.
    """

    @cache
    def make(kind: str = "llama", attention: str = "sdpa", kv_heads: int = 2, seed: int = 0) -> Any:
        model = _build(kind, attention, kv_heads, seed)
        ids = torch.tensor([[1, *[IMAGE_TOKEN] * PATCHES, 5]])
        with torch.no_grad():
            model(input_ids=ids, pixel_values=torch.zeros(1, 3, 96, 96), output_hidden_states=True)
        return model

    return make


@pytest.fixture(scope="session")
def model(build: Callable[..., Any]) -> Any:
    return build()


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


@pytest.fixture(scope="session")
def budget() -> Callable[..., ViTCoP]:
    """ViTCoP at a share of the tokens, with a cutoff distance that fits the small tower."""

    def make(share: str = "1/9", **settings: Any) -> ViTCoP:
        retention = {} if "ratios" in settings else {"retention_ratio": Fraction(share)}
        if share == "1/18":  # out of reach of 8 layers that are first cut before the third
            settings.setdefault("layers", (1, 6))
        return ViTCoP(**{"cutoff_distance": 3.0, **retention, **settings})

    return make
