"""Small random LLaVA-NeXT-Video models, and prompts of words, pictures and clips for them."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

from vitcop_llava import ViTCoP, tile_image
from vitcop_llava.families import register_family
from vitcop_video.family import locate

# An installed vitcop-video is found by its entry point; these tests also run from the sources alone.
register_family("LlavaNextVideoForConditionalGeneration", locate)

IMAGE_TOKEN, VIDEO_TOKEN = 98, 99
SIDE, PATCH = 64, 8
TOKENS = 16  # of one frame: 8 x 8 patches, pooled 2 x 2
PINPOINTS = [[64, 128], [128, 64], [128, 128]]
TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("video_inputs" not in request.fixturenames):
        yield


def _config(kind: str, mode: str, side: int, vocabulary: int) -> LlavaNextVideoConfig:
    text: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    if kind == "mistral":
        text["sliding_window"] = None
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        projection_dim=32,
    )
    make: Any = LlavaNextVideoConfig
    config: LlavaNextVideoConfig = make(
        vision_config=vision,
        text_config=TEXT_CONFIGS[kind](**text),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=[[a * side // SIDE, b * side // SIDE] for a, b in PINPOINTS],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        spatial_pool_mode=mode,
        spatial_pool_stride=2,
    )
    return config


@pytest.fixture(scope="session")
def build_video() -> Callable[..., Any]:
    """A model of 8 decoder layers and 16 tokens a frame; one object for each set of arguments."""

    @cache
    def make(
        kind: str = "llama",
        attention: str = "sdpa",
        mode: str = "average",
        side: int = SIDE,
        vocabulary: int = 100,
    ) -> Any:
        config = _config(kind, mode, side, vocabulary)
        config._attn_implementation = attention
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = LlavaNextVideoForConditionalGeneration(config)
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
        # An answer that is computed again must hold no placeholder.
        model.generation_config.suppress_tokens = [IMAGE_TOKEN, VIDEO_TOKEN]
        model.eval()
        # transformers puts hooks of its own on a model when outputs are first asked for.
        tokens = (side // PATCH // 2) ** 2
        ids = torch.tensor([[1, *[VIDEO_TOKEN] * tokens, 5]])
        with torch.no_grad():
            model(input_ids=ids, pixel_values_videos=torch.zeros(1, 1, 3, side, side), output_hidden_states=True)
        return model

    return make


@pytest.fixture(scope="session")
def video_model(build_video: Callable[..., Any]) -> Any:
    return build_video()


def _pixels(frames: int, seed: int) -> torch.Tensor:
    return torch.randn(frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def video_inputs() -> Callable[..., dict[str, Any]]:
    """The model's inputs from rows of parts.

    A number stands for so many words, ``"clip4"`` for a clip of 4 frames, a pair for a picture of that width and
    height. Clips of one length come as a tensor, of several as a list.
    """

    def make(rows: list[list[Any]], side: str = "left", *, listed: bool = False) -> dict[str, Any]:
        ids, clips, pictures, sizes = [], [], [], []
        for row in rows:
            own = [1]
            for number, part in enumerate(row):
                if isinstance(part, int):
                    own += [3 + (7 * k + part + number) % 90 for k in range(part)]
                elif isinstance(part, str):
                    frames = int(part.removeprefix("clip"))
                    clips.append(_pixels(frames, 10 * frames + number))
                    own += [VIDEO_TOKEN] * (frames * TOKENS)
                else:
                    width, height = part
                    tiling = tile_image(height, width, pinpoints=PINPOINTS, tile_size=SIDE, patch_size=PATCH)
                    pictures.append(_pixels(len(tiling.boxes), width + height))
                    sizes.append([height, width])
                    own += [IMAGE_TOKEN] * tiling.placeholders
            ids.append(own)
        longest = max(map(len, ids))

        def padded(values: list[int]) -> torch.Tensor:
            missing = longest - len(values)
            return functional.pad(torch.tensor(values), (missing, 0) if side == "left" else (0, missing))

        given: dict[str, Any] = {
            "input_ids": torch.stack([padded(own) for own in ids]),
            "attention_mask": torch.stack([padded([1] * len(own)) for own in ids]),
        }
        if clips:
            alike = len({len(clip) for clip in clips}) == 1 and not listed
            given["pixel_values_videos"] = torch.stack(clips) if alike else clips
        if pictures:
            most = max(map(len, pictures))
            full = [functional.pad(each, (0, 0, 0, 0, 0, 0, 0, most - len(each))) for each in pictures]
            given |= {"pixel_values": torch.stack(full), "image_sizes": torch.tensor(sizes)}
        return given

    return make


@pytest.fixture(scope="session")
def budget() -> Callable[..., ViTCoP]:
    """ViTCoP at a share of the tokens, with a cutoff distance that fits the small tower."""

    def make(share: str = "1/3", **settings: Any) -> ViTCoP:
        retention = {} if {"ratios", "retained_tokens"} & set(settings) else {"retention_ratio": Fraction(share)}
        return ViTCoP(**{"cutoff_distance": 3.0, **retention, **settings})

    return make
