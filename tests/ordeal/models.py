"""Small models with random weights, their inputs, and a checkpoint of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging

from vitcop_llava.tools.demo.build import demo_processor, initialised_model, save_demo

IMAGE_TOKEN, PATCHES, SIDE, WORDS = 99, 36, 48, 90
LAYERS = 4


def tiny_model() -> Any:
    """A LLaVA of four decoder layers, 36 patches an image and 100 words."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=PATCHES
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]
    model.generation_config.pad_token_id = 0
    return model.eval()


def prompt(*parts: int | str, seed: int = 0) -> Tensor:
    """``[1, L]`` ids from parts: a number stands for so many words, ``"image"`` for placeholders."""
    generator, ids = torch.Generator().manual_seed(seed), [1]
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(3, WORDS, (part,), generator=generator).tolist()
        else:
            ids += [IMAGE_TOKEN] * PATCHES
    return torch.tensor([ids])


def pictures(count: int = 1, seed: int = 0) -> Tensor:
    """``[count, 3, 48, 48]`` random pictures."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(100 + seed))


def checkpoint(folder: Path) -> Path:
    """A folder with the demo model's shape, tokenizer and image processor, and random weights."""
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = initialised_model(12)
    folder.mkdir()
    save_demo(model, demo_processor(12), folder)
    return folder
