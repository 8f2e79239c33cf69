"""Small random models in folders that vLLM reads, and one engine for all tests of a module."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip("vllm")

from conftest_vllm import ENGINE, PINPOINTS, SIDE
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vitcop_llava.tools.demo.build import demo_config, demo_processor, save_demo


def _draw(model: Any) -> None:
    """Give weights under which images and words change the answer."""
    parts = model.model
    with torch.no_grad():
        for module in [
            *parts.vision_tower.modules(),
            *parts.language_model.layers.modules(),
            *parts.multi_modal_projector.modules(),
        ]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features))
        words = parts.language_model.embed_tokens
        nn.init.normal_(words.weight, std=1.0)
        nn.init.normal_(model.lm_head.weight, std=2.0 / math.sqrt(words.embedding_dim))


def _published(folder: Path) -> Path:
    """Name the tower's weights as published checkpoints do."""
    weights = load_file(folder / "model.safetensors")
    names = {
        name: name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        for name in weights
        if "vision_tower." in name
    }
    save_file(
        {names.get(name, name): value for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-1.5 of 144 patches an image."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(demo_config(12))
    _draw(model)
    folder = tmp_path_factory.mktemp("llava")
    save_demo(model, demo_processor(12), folder)  # with the names of transformers 5
    return folder


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a SigLIP tower."""
    torch.manual_seed(2)
    base = demo_config(12)
    clip = base.vision_config
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    base.vision_config = SiglipVisionConfig(**{name: getattr(clip, name) for name in sizes}, vision_use_head=False)
    base.vision_feature_select_strategy = "full"
    model = LlavaForConditionalGeneration(base)
    _draw(model)
    processor = demo_processor(12)
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0
    folder = tmp_path_factory.mktemp("siglip")
    save_demo(model, processor, folder)
    return _published(folder)


@pytest.fixture(scope="session")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT with tiles of 144 patches."""
    torch.manual_seed(1)
    base, processor = demo_config(12), demo_processor(12)
    make: Any = LlavaNextConfig
    config = make(
        vision_config=base.vision_config,
        text_config=base.text_config,
        image_token_index=base.image_token_id,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=base.vision_feature_layer,
    )
    model = LlavaNextForConditionalGeneration(config)
    _draw(model)
    with torch.no_grad():
        nn.init.normal_(model.model.image_newline, std=1.0)
    folder = tmp_path_factory.mktemp("llava-next")
    model.save_pretrained(folder)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=processor.image_processor.image_mean,
        image_std=processor.image_processor.image_std,
    )
    LlavaNextProcessor(
        image_processor=images,
        tokenizer=processor.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return _published(folder)


@pytest.fixture(scope="module")
def engine(llava: Path) -> Any:
    """An engine without settings of its own."""
    from vllm import LLM

    return LLM(model=str(llava), **ENGINE)


@pytest.fixture(scope="session")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-OneVision with tiles of 49 patches, sixteen of them at most."""
    torch.manual_seed(3)
    base, processor, side = demo_config(12), demo_processor(12), 98
    pinpoints = [[side * down, side * across] for down in range(1, 5) for across in range(1, 5)]
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    text: Any = base.text_config
    tokenizer: Any = processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]})
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            **sizes, num_hidden_layers=3, image_size=side, patch_size=14, vision_use_head=False
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            **{name: getattr(text, name) for name in ("hidden_size", "intermediate_size")},
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=text.pad_token_id,
            bos_token_id=text.bos_token_id,
            eos_token_id=text.eos_token_id,
            tie_word_embeddings=False,
        ),
        image_token_index=base.image_token_id,
        video_token_index=len(tokenizer) - 1,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    _draw(model)
    with torch.no_grad():
        nn.init.normal_(model.model.image_newline, std=1.0)
    folder = tmp_path_factory.mktemp("onevision")
    model.save_pretrained(folder)
    numbers: dict[str, Any] = {"image_mean": processor.image_processor.image_mean, "image_std": [0.3, 0.3, 0.3]}
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": side, "width": side}, image_grid_pinpoints=pinpoints, **numbers
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": side, "width": side}, **numbers),
        num_image_tokens=49,
        vision_feature_select_strategy="full",
        video_token="<video>",
        vision_aspect_ratio="anyres_max_9",
    ).save_pretrained(folder)
    return _published(folder)


@pytest.fixture(scope="module")
def onevision_engine(onevision: Path) -> Any:
    """An engine without settings of its own."""
    from vllm import LLM

    return LLM(model=str(onevision), **ENGINE | {"limit_mm_per_prompt": {"image": 4, "video": 0}})


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL whose tower has windows of 2 x 2 squares in its first and last layer.

    Positions turn queries and keys far, so that an answer tells when a token stands elsewhere.
    """
    torch.manual_seed(4)
    base, processor = demo_config(12), demo_processor(12)
    tokenizer: Any = processor.tokenizer
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    start, end, image, clip = tokenizer.convert_tokens_to_ids(marks)
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    text: Any = base.text_config
    make: Any = Qwen2_5_VLConfig
    config = make(
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": 14,
            "out_hidden_size": 128,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "pad_token_id": text.pad_token_id,
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
        },
        image_token_id=image,
        video_token_id=clip,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features))
        nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
        nn.init.normal_(model.lm_head.weight, std=2.0 / math.sqrt(128))
    folder = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder)
    size = {"shortest_edge": 28 * 28, "longest_edge": 144 * 28 * 28}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template="{{ messages }}",
    ).save_pretrained(folder)
    return folder
