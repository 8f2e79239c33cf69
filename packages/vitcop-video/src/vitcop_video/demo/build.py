"""The demo video model's parts: the same transformers classes as LLaVA-NeXT-Video, begun from the image demo."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from vitcop_core.files import write_text
from vitcop_llava.tools.demo.build import CHAT_TEMPLATE, PATCH_SIZE, SPECIAL_TOKENS, word_tokenizer
from vitcop_llava.tools.demo.questions import vocabulary
from vitcop_llava.tools.model.loading import DEMO_FOLDER as IMAGE_DEMO
from vitcop_video.demo.events import FRAMES, SIDE
from vitcop_video.demo.questions import new_words
from vitcop_video.processing import ClipProcessor

POOL = 2
VIDEO_TOKEN = "<video>"
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
_CLIPS = "{% for item in message['content'] if item['type'] == 'video' %}<video>\n{% endfor %}"
_IMAGES = "{% for item in message['content'] if item['type'] == 'image' %}"


def words() -> list[str]:
    """Return every token in the order of the ids: those of the image demo, whose embeddings are kept, then the new
    ones.
    """
    known = [*SPECIAL_TOKENS, *vocabulary()]
    return [*known, VIDEO_TOKEN, *(word for word in new_words() if word not in known)]


def demo_model() -> LlavaNextVideoForConditionalGeneration:
    """Return a demo video model before training: the image demo's weights, and embeddings of unit scale for the new
    words.
    """
    image_demo = LlavaForConditionalGeneration.from_pretrained(IMAGE_DEMO)
    old: Any = image_demo.config
    grid = SIDE // PATCH_SIZE
    make: Any = LlavaNextVideoConfig
    config = make(
        vision_config=old.vision_config,
        text_config={**old.text_config.to_dict(), "vocab_size": len(words())},
        image_token_index=words().index("<image>"),
        video_token_index=words().index(VIDEO_TOKEN),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=grid**2,
        video_seq_length=FRAMES * (grid // POOL) ** 2,
        spatial_pool_mode="average",
        spatial_pool_stride=POOL,
        vision_feature_layer=old.vision_feature_layer,
        vision_feature_select_strategy=old.vision_feature_select_strategy,
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    begun, kept = model.state_dict(), image_demo.state_dict()
    width = config.text_config.hidden_size
    with torch.no_grad():
        nn.init.normal_(begun["model.language_model.embed_tokens.weight"], std=1.0)
        begun["lm_head.weight"].copy_(begun["model.language_model.embed_tokens.weight"] * (2 / math.sqrt(width)))
        for name, values in kept.items():
            begun[name][: len(values)].copy_(values)
    return model


def demo_processor() -> ClipProcessor:
    """Return a word-level tokenizer over both demos' vocabularies, and frames at the image demo's resolution."""
    tokenizer = word_tokenizer(words(), image_token="<image>", video_token=VIDEO_TOKEN)
    size: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return ClipProcessor(
        tokenizer,
        image_processor=LlavaNextImageProcessorPil(**size, image_grid_pinpoints=PINPOINTS),
        frame_processor=CLIPImageProcessorPil(**size),
        patch_size=PATCH_SIZE,
        pool=POOL,
        chat_template=CHAT_TEMPLATE.replace(_IMAGES, _CLIPS + _IMAGES),
    )


def save_demo(model: LlavaNextVideoForConditionalGeneration, processor: ClipProcessor, folder: Path) -> None:
    """Write weights (safetensors), configuration, and what `ClipProcessor.from_pretrained` reads."""
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    settings = {
        "processor_class": "LlavaNextVideoProcessor",
        "patch_size": processor.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": processor.image_token,
        "video_token": processor.video_token,
    }
    write_text(folder / "processor_config.json", json.dumps(settings, indent=2) + "\n")
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE.replace(_IMAGES, _CLIPS + _IMAGES))
