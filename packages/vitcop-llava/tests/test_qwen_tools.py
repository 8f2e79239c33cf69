"""The commands on a Qwen2.5-VL and a Qwen3-VL checkpoint: pictures of any size, through transformers' own processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from typer.testing import CliRunner, Result

from test_qwen_vl import END, IMAGE, START, VIDEO, build
from vitcop_llava.tools.cli import app
from vitcop_llava.tools.demo.build import word_tokenizer
from vitcop_llava.tools.model.loading import load
from vitcop_llava.tools.model.processors import _for_pictures

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
SPECIAL = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "what", "is", "this"]
LARGE = {"shortest_edge": 8 * 8, "longest_edge": 8 * 8 * 64}
"""Pixels: from 1 to 64 tokens, squares of 2 x 2 patches of 4 x 4."""


def save(folder: Path, family: str, **changed: Any) -> Path:
    """Write a checkpoint of the small model with a processor of whole words."""
    model = build(family)
    numbered = [SPECIAL.get(number, WORDS[number] if number < len(WORDS) else f"w{number}") for number in range(100)]
    tokens = {name: SPECIAL[number] for name, number in (("image_token", IMAGE), ("video_token", VIDEO))}
    tokenizer = word_tokenizer(numbered, **tokens, vision_start_token=SPECIAL[START], vision_end_token=SPECIAL[END])
    images = Qwen2VLImageProcessorPil(**{"patch_size": 4, "size": LARGE} | changed)
    processor: Any = _for_pictures(PROCESSOR_MAPPING[type(model.config)])
    processor(images, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)
    with torch.random.fork_rng():
        model.generation_config.suppress_tokens = None
        model.save_pretrained(folder)
    GenerationConfig(suppress_tokens=[IMAGE, VIDEO, START], pad_token_id=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Qwen2.5-VL."""
    return save(tmp_path_factory.mktemp("qwen2.5"), "qwen2.5")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 64 x 40 pixels: 8 x 5 tokens."""
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])
