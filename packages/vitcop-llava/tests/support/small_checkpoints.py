"""Checkpoints of small random models with processors of whole words, as the tools load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from qwen_small import END, IMAGE, START, VIDEO
from qwen_small import build as build_qwen
from torch import nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vitcop_llava.tools.demo.build import word_tokenizer
from vitcop_llava.tools.model.processors import _for_pictures

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "what", "is", "this"]
TILE = 40
PINPOINTS = [[TILE * down, TILE * across] for down in range(1, 4) for across in range(1, 4)]
QWEN = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
LLAVA = {IMAGE: "<image>", VIDEO: "<video>"}
QWEN_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def save(folder: Path, family: str) -> Path:
    """Write a checkpoint of ``llava-next``, ``onevision`` or one of Qwen-VL's families."""
    qwen = family.startswith("qwen")
    model = build_qwen(family) if qwen else _build(family)
    special = QWEN if qwen else LLAVA
    names = [special.get(number, WORDS[number] if number < len(WORDS) else f"w{number}") for number in range(100)]
    tokens = {"image_token": special[IMAGE], "video_token": special[VIDEO]}
    if qwen:
        tokens |= {"vision_start_token": special[START], "vision_end_token": special[END]}
    tokenizer, side = word_tokenizer(names, **tokens), {"height": TILE, "width": TILE}
    if family == "llava-next":
        images: Any = LlavaNextImageProcessorPil(size=side, crop_size=side, image_grid_pinpoints=PINPOINTS)
        LlavaNextProcessor(images, tokenizer).save_pretrained(folder)
    else:
        pictures: Any = _for_pictures(PROCESSOR_MAPPING[type(model.config)])
        if qwen:
            images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096})
        else:
            images = LlavaOnevisionImageProcessorPil(size=side, image_grid_pinpoints=PINPOINTS)
        pictures(images, tokenizer, chat_template=QWEN_TEMPLATE if qwen else None).save_pretrained(folder)
    suppressed, model.generation_config.suppress_tokens = model.generation_config.suppress_tokens, None
    model.save_pretrained(folder)
    model.generation_config.suppress_tokens = suppressed  # the model is everybody's
    GenerationConfig(suppress_tokens=[*special], pad_token_id=0).save_pretrained(folder)
    return folder


def _build(family: str) -> Any:
    """A model with random weights: tiles of 5 x 5 patches, 6 decoder layers."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = LlamaConfig(
        **sizes,
        vocab_size=100,
        num_hidden_layers=6,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "llava-next": (LlavaNextConfig, LlavaNextForConditionalGeneration, {}),
        "onevision": (
            LlavaOnevisionConfig,
            LlavaOnevisionForConditionalGeneration,
            {"video_token_index": VIDEO, "vision_aspect_ratio": "anyres_max_2"},
        ),
    }
    configuration, kind, more = kinds[family]
    config = configuration(
        vision_config=SiglipVisionConfig(**sizes, num_hidden_layers=3, image_size=TILE, patch_size=8),
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **more,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = kind(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    return model.eval()
