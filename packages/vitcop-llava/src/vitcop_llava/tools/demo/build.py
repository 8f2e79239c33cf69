"""The demo model's parts: the same transformers classes as LLaVA-1.5, at a thousandth of the size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vitcop_core.files import write_bytes
from vitcop_llava.tools.demo.questions import vocabulary

PATCH_SIZE = 14
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }} {% endfor %}"
    "{% endif %}"
    "{% if message['role'] != 'user' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def demo_config(grid: int) -> LlavaConfig:
    """Return the configuration of a demo model with ``grid`` x ``grid`` visual tokens an image."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=grid * PATCH_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    words = len(SPECIAL_TOKENS) + len(vocabulary())
    text = LlamaConfig(
        vocab_size=words,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL_TOKENS.index("<image>"),
        image_seq_length=grid * grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def word_tokenizer(words: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words.

    Args:
        words: In the order of their ids, ``<pad>``, ``<s>``, ``</s>`` and ``<unk>`` among them.
        special: Further special tokens, such as ``image_token``.
    """
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=special,
        padding_side="left",
        model_max_length=2048,
    )


def demo_processor(grid: int) -> LlavaProcessor:
    """Return a word-level tokenizer over the demo's vocabulary and CLIP's image processor at the demo's resolution."""
    tokenizer = word_tokenizer([*SPECIAL_TOKENS, *vocabulary()], image_token="<image>")
    size = grid * PATCH_SIZE
    images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def initialised_model(grid: int) -> LlavaForConditionalGeneration:
    """Return a demo model before training, with the initialization that lets one this small learn to bind.

    transformers' default (a standard deviation of 0.02) leaves the residual stream of a 128-wide model near zero, and
    training stays at chance for thousands of steps. Here embeddings and projector outputs have unit scale, layer
    weights 0.7 / sqrt(fan-in), and the head's rows are the embeddings times 2 / sqrt(width).
    """
    model = LlavaForConditionalGeneration(demo_config(grid))
    with torch.no_grad():
        language = model.model.language_model
        for module in [*model.model.vision_tower.modules(), *language.layers.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features))
        for module in model.model.multi_modal_projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
        nn.init.normal_(language.embed_tokens.weight, std=1.0)
        width = language.embed_tokens.embedding_dim
        model.lm_head.weight.copy_(language.embed_tokens.weight * (2.0 / math.sqrt(width)))
        embeddings = model.model.vision_tower.embeddings
        nn.init.normal_(embeddings.patch_embedding.weight, std=1.0 / math.sqrt(3 * PATCH_SIZE**2))
        nn.init.normal_(embeddings.position_embedding.weight, std=0.5)
        nn.init.normal_(embeddings.class_embedding, std=0.5)
    return model


def save_demo(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write weights (safetensors), configuration and processor as ``from_pretrained`` reads them."""
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with TemporaryDirectory() as name:
        model.save_pretrained(name)
        processor.save_pretrained(name)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(name).iterdir()):
            write_bytes(folder / path.name, path.read_bytes())
