"""One question about images and clips: the prompt, the generation, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from vitcop_llava.tools.media.video_support import Clip
from vitcop_llava.tools.model.loading import Loaded
from vitcop_llava.tools.model.processors import no_panics
from vitcop_llava.tools.model.templates import render_chat

Medium = Image.Image | Clip
"""What a question can be about."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the answer, without special tokens.
        tokens: how many tokens it took, the closing one included.
        prefill_seconds: from the call to the first token, the vision tower included.
        decode_seconds: from the first token to the last.
    """

    text: str
    tokens: int
    prefill_seconds: float
    decode_seconds: float


def build_prompt(processor: Any, kinds: Sequence[str], question: str) -> str:
    """Return the prompt for a question: by the processor's chat template, or else in LLaVA-1.5's format.

    Args:
        processor: of the model.
        kinds: ``"image"`` or ``"video"`` for each thing that is looked at, in order.
        question: comes after them.

    Raises:
        ModelError: the template fails, or does not end.
    """
    if getattr(processor, "chat_template", None):
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        return render_chat(processor, chat)
    seen = "".join(f"{placeholders(processor)[kind]}\n" for kind in kinds)
    return f"USER: {seen}{question} ASSISTANT:"


def prepare(loaded: Loaded, media: Sequence[Medium], question: str) -> Any:
    """Return the model's inputs, on its device and in its dtype.

    Args:
        loaded: the model.
        media: pictures and clips, in order.
        question: comes after them.

    Raises:
        ValueError: for a clip where the model reads images alone, a question that holds a placeholder, a prompt longer
            than the model's context, or a chat template that has no place for what is looked at.
    """
    return prepare_batch(loaded, [(media, question)])


def prepare_batch(loaded: Loaded, asked: Sequence[tuple[Sequence[Medium], str]]) -> Any:
    """Return the inputs of several questions, each with its pictures and clips, as a batch that is padded on the left.

    Raises:
        ValueError: as `prepare`, or for several questions to a tokenizer that cannot pad.
    """
    every = [media for media, _ in asked]
    check_media(loaded, every)
    prompts = [_checked_prompt(loaded.processor, media, question) for media, question in asked]
    return encode(loaded, prompts, every)


def check_media(loaded: Loaded, media: Sequence[Sequence[Medium]]) -> None:
    """Raise unless a model reads what some prompts hold.

    Raises:
        ValueError: for a clip where the model reads images alone.
    """
    if loaded.parts.video is None and any(isinstance(each, Clip) for row in media for each in row):
        kind = type(loaded.model).__name__
        if loaded.parts.squares is not None:
            raise ValueError(
                f"model must read clips frame by frame, got a {kind}; prepare its clips with transformers' own "
                "processor, which needs torchvision, and prune it in a program"
            )
        raise ValueError(f"model must read clips, for example a LlavaNextVideoForConditionalGeneration, got a {kind}")


def encode(loaded: Loaded, prompts: Sequence[str], media: Sequence[Sequence[Medium]]) -> Any:
    """Return the inputs of prompts, each with its pictures and clips, as a batch that is padded on the left.

    Args:
        loaded: the model.
        prompts: with one placeholder for each picture and clip.
        media: of each prompt, in order.

    Raises:
        ValueError: for several prompts to a tokenizer that cannot pad, or one longer than the model's context.
    """
    processor, every = loaded.processor, [each for row in media for each in row]
    clips = [each.frames for each in every if isinstance(each, Clip)]
    images = [each for each in every if not isinstance(each, Clip)]
    # A template that writes the opening token itself would otherwise get it twice.
    opening = processor.tokenizer.bos_token
    given: dict[str, Any] = {"add_special_tokens": not (opening and prompts[0].startswith(opening))}
    if len(prompts) > 1:
        if processor.tokenizer.pad_token is None:
            raise ValueError("model must have a tokenizer with a padding token, got none; ask one question at a time")
        given |= {"padding": True, "padding_side": "left"}
    given |= ({"images": images} if images else {}) | ({"videos": clips} if clips else {})
    with no_panics():
        inputs = processor(text=[*prompts], return_tensors="pt", **given)
    length, most = inputs["input_ids"].shape[1], getattr(loaded.parts.config, "max_position_embeddings", None)
    if most is not None and length >= most:
        raise ValueError(
            f"question must fit into the model's context of {most} tokens with what comes before it, got {length}"
        )
    inputs = inputs.to(loaded.device, loaded.dtype)
    if isinstance(listed := inputs.get("pixel_values_videos"), list):  # of clips that differ in length
        inputs["pixel_values_videos"] = [clip.to(loaded.device, loaded.dtype) for clip in listed]
    return inputs


def _checked_prompt(processor: Any, media: Sequence[Medium], question: str) -> str:
    kinds, places = ["video" if isinstance(each, Clip) else "image" for each in media], placeholders(processor)
    for token in places.values():
        if token in question:
            raise ValueError(f"question must not hold the placeholder {token!r}; images and clips come first")
    prompt = build_prompt(processor, kinds, question)
    for kind, token in places.items():
        if (found := prompt.count(token)) != (needed := kinds.count(kind)):
            raise ValueError(f"model must have a chat template with a place for each of {needed} {kind}s, got {found}")
    return prompt


def placeholders(processor: Any) -> dict[str, str]:
    """Return what stands in a prompt for each kind of thing that the processor takes: ``image``, and ``video``."""
    video = getattr(processor, "video_token", None)
    return {"image": processor.image_token} | ({} if video is None else {"video": video})


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Return the words of ``text`` that the tokenizer has no token for, each once; punctuation is no word."""
    if tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    words = (text[start:stop] for token, (start, stop) in spans if token == tokenizer.unk_token_id)
    return list(dict.fromkeys(word for word in words if any(letter.isalnum() for letter in word)))


def generate(loaded: Loaded, inputs: Any, max_new_tokens: int) -> Answer:
    """Answer greedily, under whatever pruning is on the model, and take the time."""
    clock = _Clock()
    with torch.inference_mode():
        output = loaded.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, streamer=clock
        )
    tokens = output[0, inputs["input_ids"].shape[1] :]
    with no_panics():
        text = loaded.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    first, last = clock.times[0], clock.times[-1]
    return Answer(text, len(tokens), first - clock.start, last - first)


def generate_batch(loaded: Loaded, inputs: Any, max_new_tokens: int) -> list[str]:
    """Answer each row greedily, under whatever pruning is on the model.

    Args:
        loaded: the model.
        inputs: as `prepare_batch` makes them.
        max_new_tokens: of each answer.
    """
    with torch.inference_mode():
        output = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    words = output[:, inputs["input_ids"].shape[1] :]
    with no_panics():
        decoded = loaded.processor.tokenizer.batch_decode(words, skip_special_tokens=True)
    return [answer.strip() for answer in decoded]


class _Clock(BaseStreamer):
    """Notes when each token comes. `generate` hands tokens over on the host, so the device is done with them."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        return
