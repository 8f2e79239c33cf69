"""The inputs of LLaVA-NeXT-Video from text, frames and pictures, with Pillow alone.

transformers' own ``LlavaNextVideoProcessor`` needs torchvision, whose builds on the package index do not fit a torch
for CPUs. Pixels are those of the stock processor but for Pillow's rounding, which may differ by one level of 255.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, LlavaNextProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.utils.hub import cached_file

# What a video processor's file may set of how a frame becomes pixels. Sampling is not among it: frames come sampled.
_SETTINGS = (
    "size crop_size do_resize do_center_crop do_rescale do_normalize do_convert_rgb image_mean image_std resample "
    "rescale_factor"
).split()


class ClipProcessor:
    """Prepares text, clips and pictures for a ``LlavaNextVideoForConditionalGeneration``.

    Args:
        tokenizer: With tokens for images and videos.
        image_processor: For pictures; None for one of the frames' size.
        frame_processor: For frames; None for shortest sides of 336 pixels, cropped to squares.
        patch_size: Side of a patch in pixels.
        pool: Side of the square of patches that becomes one token.
        chat_template: How a conversation becomes a prompt; None for the tokenizer's.
        image_token: Stands for a picture in a prompt.
        video_token: Stands for a clip.

    Raises:
        ValueError: The tokenizer does not know one of the two tokens, or frames are not cropped to squares.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        image_processor: Any = None,
        frame_processor: Any = None,
        patch_size: int = 14,
        pool: int = 2,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
    ) -> None:
        for name, token in (("image_token", image_token), ("video_token", video_token)):
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise ValueError(f"{name} must be a token of the tokenizer, got {token!r}")
        side = {"height": 336, "width": 336}
        self.frame_processor = frame_processor or CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side)
        crop = self.frame_processor.crop_size
        if crop is None or crop["height"] != crop["width"]:
            raise ValueError(f"frame_processor must crop to squares, got crop_size={crop}")
        self.frame_size, self.patch_size, self.pool = int(crop["height"]), patch_size, pool
        size = {"height": self.frame_size, "width": self.frame_size}
        images = image_processor or LlavaNextImageProcessorPil(size={"shortest_edge": self.frame_size}, crop_size=size)
        self._inner = LlavaNextProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy="default",
            image_token=image_token,
            chat_template=chat_template or tokenizer.chat_template,
            num_additional_image_tokens=1,
        )
        self.tokenizer, self.image_processor = tokenizer, images
        self.image_token, self.video_token = image_token, video_token

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Self:
        """Read the settings of a checkpoint.

        Args:
            name: A local folder, or a name on the hub.
            **kwargs: For transformers, such as ``local_files_only`` or ``revision``.

        Raises:
            OSError: There is no such checkpoint.
            ValueError: Its settings do not fit.
        """
        whole = _read_json(name, "processor_config.json", kwargs)
        video = whole.get("video_processor") or _read_json(name, "video_preprocessor_config.json", kwargs)
        images = LlavaNextImageProcessorPil.from_pretrained(name, **kwargs)
        settings = {key: video[key] for key in _SETTINGS if video.get(key) is not None}
        settings = {"size": dict(images.size), "crop_size": dict(images.crop_size)} | settings
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **kwargs)
        template = cached_file(name, "chat_template.jinja", _raise_exceptions_for_missing_entries=False, **kwargs)
        return cls(
            tokenizer,
            image_processor=images,
            frame_processor=CLIPImageProcessorPil(**settings),
            patch_size=whole.get("patch_size") or 14,
            chat_template=_read_text(template) if template else whole.get("chat_template"),
            image_token=whole.get("image_token") or "<image>",
            video_token=whole.get("video_token") or "<video>",
        )

    @property
    def tokens_per_frame(self) -> int:
        """Placeholders of one frame."""
        return (self.frame_size // self.patch_size // self.pool) ** 2

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Return a prompt from a conversation, as processors of transformers do it; untokenized unless asked for."""
        return self._inner.apply_chat_template(conversation, **{"tokenize": False, **kwargs})

    def __call__(
        self, text: str | Sequence[str], videos: Sequence[Any] | None = None, images: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Return the model's inputs.

        Args:
            text: One prompt or several, each with one video token a clip and one image token a picture.
            videos: The clips of all prompts in order, each ``[F, H, W, 3]`` uint8 or F pictures of Pillow. Clips may
                differ in length.
            images: Pictures, in order.
            **kwargs: For the tokenizer, such as ``padding``.

        Returns:
            ``input_ids``, ``attention_mask``, and for pictures ``pixel_values`` and ``image_sizes``; for clips
            ``pixel_values_videos``, ``[clips, F, 3, s, s]`` float32. Clips of several lengths are a list with
            ``[F, 3, s, s]`` for each, which a model takes while it is pruned.

        Raises:
            TypeError: A clip is neither an array nor pictures.
            ValueError: Clips and video tokens differ in number, a clip has another shape or no frame, or one stands for
                a list of them.
        """
        texts = [text] if isinstance(text, str) else [*text]
        if isinstance(videos, np.ndarray | Tensor) and videos.ndim == 4:
            raise ValueError(f"videos must be a list of clips, got one of shape {tuple(videos.shape)}; give [clip]")
        clips = [self.pixels(clip) for clip in (() if videos is None else videos)]
        expanded = expand_video_tokens(texts, [len(clip) for clip in clips], self.tokens_per_frame, self.video_token)
        batch: BatchFeature = self._inner(text=expanded, images=images, **{**kwargs, "return_tensors": "pt"})
        if clips:
            alike = len({len(clip) for clip in clips}) == 1
            batch["pixel_values_videos"] = torch.stack(clips) if alike else clips
        return batch

    def pixels(self, clip: Any) -> Tensor:
        """Return one clip's ``[F, 3, s, s]`` float32.

        Args:
            clip: ``[F, H, W, 3]`` uint8, or F pictures of Pillow.

        Raises:
            TypeError: It is neither.
            ValueError: The shape is another, or there is no frame.
        """
        if isinstance(clip, Tensor):
            clip = clip.cpu().numpy()
        if isinstance(clip, np.ndarray):
            if clip.dtype != np.uint8:
                raise TypeError(f"videos must be of uint8, got {clip.dtype}")
            if clip.ndim != 4 or clip.shape[3] != 3 or 0 in clip.shape:
                raise ValueError(f"videos must be of shape [frames, height, width, 3], got {clip.shape}")
        elif not isinstance(clip, Sequence) or isinstance(clip, str) or not all(hasattr(f, "convert") for f in clip):
            raise TypeError(f"videos must be arrays or lists of pictures, got {type(clip).__name__}")
        if len(clip) == 0:
            raise ValueError("videos must have one frame at least in each clip, got none")
        pixels: Tensor = self.frame_processor(images=[*clip], return_tensors="pt")["pixel_values"]
        return pixels


def expand_video_tokens(
    texts: Sequence[str], frames: Sequence[int], tokens_per_frame: int, video_token: str = "<video>"
) -> list[str]:
    """Return the prompts with as many placeholders for each clip as the model has tokens.

    Args:
        texts: Prompts, one video token a clip.
        frames: Of each clip, in the order of the prompts.
        tokens_per_frame: 144 for frames of 336 pixels.
        video_token: The placeholder.

    Raises:
        ValueError: There are more clips than video tokens, or fewer.

    >>> expand_video_tokens(["USER: <video>?"], [2], 3)
    ['USER: <video><video><video><video><video><video>?']
    """
    found = sum(text.count(video_token) for text in texts)
    if found != len(frames):
        raise ValueError(f"videos must be as many as {video_token} in text, which is {found}, got {len(frames)}")
    counts, expanded = iter(frames), []
    for text in texts:
        first, *rest = text.split(video_token)
        expanded.append(first + "".join(video_token * (next(counts) * tokens_per_frame) + part for part in rest))
    return expanded


def _read_json(name: str, file: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's file of settings; empty where it has none."""
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **kwargs)
    found = json.loads(_read_text(path)) if path else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold settings by name, got {type(found).__name__}")
    return found


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  (a path of transformers, which is a text)
        return file.read()
