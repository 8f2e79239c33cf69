"""The inputs of LLaVA-OneVision from text, pictures and frames, with Pillow alone.

transformers' own ``LlavaOnevisionProcessor`` needs torchvision for clips. This one has it prepare pictures and text,
and prepares frames itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils.hub import cached_file

from vitcop_llava.families import Parts

# How a frame becomes pixels. Sampling is not among it: frames come sampled.
_SETTINGS = "size do_resize do_rescale do_normalize do_convert_rgb image_mean image_std resample rescale_factor".split()


class OnevisionProcessor:
    """Prepares text, pictures and clips for a ``LlavaOnevisionForConditionalGeneration``.

    Args:
        pictures: transformers' processor of the model, without its part for clips.
        frames: turns frames into pixels.
        parts: of the model: how many tokens a clip has.
    """

    def __init__(self, pictures: Any, frames: Any, parts: Parts) -> None:
        self._pictures, self._frames, self._parts = pictures, frames, parts
        self.tokenizer, self.image_processor = pictures.tokenizer, pictures.image_processor
        self.image_token, self.video_token = pictures.image_token, pictures.video_token
        self.chat_template = pictures.chat_template
        # It would refuse placeholders of clips that it does not get.
        pictures.video_token = None

    @classmethod
    def of(cls, name: str, pictures: Any, parts: Parts, settings: dict[str, Any]) -> Self:
        """Return the processor of a checkpoint.

        Args:
            name: a folder, or an id on the hub.
            pictures: transformers' processor of it, whose settings are set to those of the model.
            parts: of the model.
            settings: what a processor that counts the model's placeholders has to be set to, as LLaVA's name it.

        Raises:
            OSError: there is no such checkpoint.
            ValueError: a file of it is not JSON.
        """
        rows, columns = parts.grid
        pictures.num_image_tokens = rows * columns + settings["num_additional_image_tokens"]
        pictures.vision_feature_select_strategy = settings["vision_feature_select_strategy"]
        pictures.vision_aspect_ratio = cast(Any, parts.base).config.vision_aspect_ratio
        images = pictures.image_processor
        found = _read_json(name, "processor_config.json").get("video_processor")
        found = found or _read_json(name, "video_preprocessor_config.json")
        usual = {key: getattr(images, key) for key in ("image_mean", "image_std")}
        side = cast(Any, parts.vision_tower.config).image_size
        usual |= {"size": {"height": side, "width": side}}
        given = {key: found[key] for key in _SETTINGS if found.get(key) is not None}
        return cls(pictures, CLIPImageProcessorPil(**usual | given, do_center_crop=False), parts)

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Return a prompt from a conversation, as processors of transformers do it."""
        return self._pictures.apply_chat_template(conversation, **kwargs)

    def __call__(self, text: str | Sequence[str], images: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """Return the model's inputs.

        Args:
            text: one prompt or several, each with one image token a picture and one video token a clip.
            images: the pictures of all prompts, in order.
            videos: the clips of all prompts, in order, each ``[F, H, W, 3]`` uint8.
            **kwargs: for the tokenizer, such as ``padding``.

        Returns:
            Tensors: ``input_ids``, ``attention_mask``, for pictures ``pixel_values``, ``image_sizes`` and
            ``batch_num_images``, for clips ``pixel_values_videos``: ``[clips, F, 3, s, s]`` float32, or a list with
            ``[F, 3, s, s]`` each where they differ in length, which a model takes while it is pruned.

        Raises:
            ValueError: pictures or clips and their tokens differ in number.
        """
        texts = [text] if isinstance(text, str) else [*text]
        pictures = [images] if isinstance(images, Image.Image) else [*(images or ())]
        clips = [self._pixels(clip) for clip in videos or ()]
        batch = self._pictures(
            text=self._with_clips(texts, clips),
            images=self._by_prompt(texts, pictures) or None,
            **kwargs | {"return_tensors": "pt"},
        )
        if clips:
            alike = len({len(clip) for clip in clips}) == 1
            batch["pixel_values_videos"] = torch.stack(clips) if alike else clips
        return batch

    def _by_prompt(self, texts: Sequence[str], pictures: Sequence[Any]) -> list[list[Any]]:
        """Return the pictures of each prompt that has any: those that share one are not tiled."""
        counts = [text.count(self.image_token) for text in texts]
        if sum(counts) != len(pictures):
            raise ValueError(
                f"images must be as many as {self.image_token} in text, which is {sum(counts)}, got {len(pictures)}"
            )
        left = iter(pictures)
        return [[next(left) for _ in range(count)] for count in counts if count]

    def _with_clips(self, texts: Sequence[str], clips: Sequence[Tensor]) -> list[str]:
        """Return the prompts with as many placeholders for each clip as the model has tokens."""
        token, video = self.video_token, self._parts.video
        assert video is not None  # of every OneVision
        found = sum(text.count(token) for text in texts)
        if found != len(clips):
            raise ValueError(f"videos must be as many as {token} in text, which is {found}, got {len(clips)}")
        counts, expanded = iter([video.clip(len(clip)).placeholders for clip in clips]), []
        for text in texts:
            first, *rest = text.split(token)
            expanded.append(first + "".join(token * next(counts) + part for part in rest))
        return expanded

    def _pixels(self, clip: Any) -> Tensor:
        """Return one clip's ``[F, 3, s, s]`` float32."""
        pixels: Tensor = self._frames(images=[*np.asarray(clip)], return_tensors="pt")["pixel_values"]
        return pixels


def _read_json(name: str, file: str) -> dict[str, Any]:
    """Return a checkpoint's file of settings; empty where it has none."""
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    found = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold settings by name, got {type(found).__name__}")
    return found
