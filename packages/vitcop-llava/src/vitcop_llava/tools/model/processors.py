"""A checkpoint's processor: read, and held against the model before anything is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from vitcop_core.shown import told
from vitcop_llava.families import Parts
from vitcop_llava.families.base import Squares, VideoParts
from vitcop_llava.families.grids import GRIDS
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.tools.media.video_support import need_support
from vitcop_llava.tools.model.onevision import OnevisionProcessor

MAX_SIDE = 4096
"""Of a picture, a patch or a tile that a model looks at, in pixels."""


class ModelError(ValueError):
    """A model that cannot be used, or a place that holds none: the message says why."""


@contextmanager
def no_panics() -> Iterator[None]:
    """Make an error of a panic in tokenizers' Rust, which is no ``Exception``.

    Raises:
        ModelError: There was one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"model must have a tokenizer that can be used, got one that fails: {told(error)}") from error


def read_processor(name: str, parts: Parts) -> Any:
    """Return the processor of a checkpoint: transformers' own, and for clips one that needs no torchvision, which is
    vitcop-video's for LLaVA-NeXT-Video. Where pictures of any size are squares of patches, it is transformers' own for
    pictures alone.

    What the checkpoint leaves out is filled in from the model: processors were saved before there were these settings.
    """
    if parts.video is not None and parts.video.pool is not None:
        return need_support().processor(name)
    if parts.video is not None or parts.squares is not None:
        kind: Any = _for_pictures(PROCESSOR_MAPPING[type(cast(Any, parts.base).config)])
        pictures = kind.from_pretrained(name, trust_remote_code=False)
        return pictures if parts.video is None else OnevisionProcessor.of(name, pictures, parts, _settings(parts))
    processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    # A setting that is not there has a default by now, which the file alone tells from a choice.
    saved, _ = ProcessorMixin.get_processor_dict(name)
    for setting, value in _settings(parts).items():
        if hasattr(processor, setting) and saved.get(setting) is None:
            setattr(processor, setting, value)
    return processor


def _for_pictures(kind: Any) -> type:
    """Return a class of processors without its processor of clips, which needs torchvision."""

    def make(self: Any, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        kind.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    # transformers reads from the arguments of __init__ which parts a processor has.
    return type(kind.__name__, (kind,), {"__init__": make})


def _settings(parts: Parts) -> dict[str, Any]:
    """Return what a processor that counts the model's placeholders has to be set to."""
    vision, base = cast(Any, parts.vision_tower.config), cast(Any, parts.base.config)
    has_cls = any(name.endswith("class_embedding") for name, _ in parts.vision_tower.named_parameters())
    return {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": base.vision_feature_select_strategy,
        "num_additional_image_tokens": int(has_cls),
    }


def check_processor(name: str, processor: Any, parts: Parts) -> None:
    """Check that a processor fits the model.

    Raises:
        ModelError: Processor and model do not fit together.
    """
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise ModelError(f"model {name} must have a processor with an {part}, got a {type(processor).__name__}")
    words = parts.config.vocab_size
    if len(processor.tokenizer) > words:
        raise ModelError(
            f"model must have a tokenizer of at most its {words} embeddings, got {len(processor.tokenizer)} tokens"
        )
    _check_numbers(processor, parts.squares)
    if parts.squares is not None:
        _check_squares(name, processor, parts, parts.squares)
        return
    vision: Any = parts.vision_tower.config
    _check_image(processor, parts, vision.image_size)
    if parts.video is not None:
        _check_clip(processor, parts.video)
    pinpoints = parts.anyres and [[*point] for point in parts.anyres.pinpoints]
    given = [[*point] for point in getattr(processor.image_processor, "image_grid_pinpoints", None) or ()]
    if pinpoints and given != pinpoints:
        raise ModelError(
            f"model must have an image processor that tiles by its image_grid_pinpoints {pinpoints}, got {given}"
        )


def _check_numbers(processor: Any, squares: Squares | None) -> None:
    """Raise where a processor makes pictures or prompts that no model looks at, before it makes one."""
    images = processor.image_processor
    if squares is not None:  # their size is the least and the most that a picture may have of pixels
        sizes = [number for number in dict(images.size).values() if number is not None]
        if not all(isinstance(number, int) and 1 <= number <= MAX_SIDE**2 for number in sizes):
            raise ModelError(
                f"model must have a processor with size from 1 to {MAX_SIDE**2} pixels, got {str(sizes)[:80]}"
            )
        return
    points = getattr(images, "image_grid_pinpoints", None) or ()
    found = {"image_grid_pinpoints": [side for point in points for side in point]}
    for name in ("size", "crop_size"):
        given = getattr(images, name, None) or {}
        found[name] = [side for side in dict(given).values() if side is not None]
    found |= {"patch_size": [getattr(processor, "patch_size", 1)]}
    found |= {"num_additional_image_tokens": [getattr(processor, "num_additional_image_tokens", 0)]}
    for name, numbers in found.items():
        least = int(name != "num_additional_image_tokens")
        if not all(isinstance(number, int) and least <= number <= MAX_SIDE for number in numbers):
            raise ModelError(
                f"model must have a processor with {name} from {least} to {MAX_SIDE}, got {str(numbers)[:80]}"
            )


def _check_squares(name: str, processor: Any, parts: Parts, squares: Squares) -> None:
    """Raise unless a plain picture becomes the patches, the grid and the placeholders that the model expects."""
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"model {name} must have a processor with a chat template, got none")
    vision: Any = parts.vision_tower.config
    images = processor.image_processor
    wanted = {
        "patch_size": vision.patch_size,
        "merge_size": squares.side,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for setting, value in wanted.items():
        if getattr(images, setting, None) != value:
            raise ModelError(
                f"model must have an image processor with {setting} {value}, as its vision tower has, got "
                f"{getattr(images, setting, None)!r}"
            )
    side = 4 * squares.side * vision.patch_size
    try:
        picture = Image.new("RGB", (side, side))
        inputs = processor(images=[picture], text=[processor.image_token], return_tensors="pt")
    except Exception as error:
        raise ModelError(
            f"model must have a processor that reads a plain image, got {told(error, with_kind=True)}"
        ) from error
    ((_, rows, columns),) = inputs[GRIDS["image"]].tolist()
    shape = (rows * columns, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
    if tuple(inputs["pixel_values"].shape) != shape:
        raise ModelError(
            f"model must have an image processor that gives {' x '.join(map(str, shape))} numbers for its vision "
            f"tower, got {' x '.join(map(str, inputs['pixel_values'].shape))}"
        )
    _check_count(inputs, "an image", parts.image_token_id, squares.image(rows, columns).placeholders)


def _check_image(processor: Any, parts: Parts, side: int) -> None:
    """Raise unless a plain image becomes the pixels and placeholders that the model expects."""
    try:
        inputs = processor(images=Image.new("RGB", (side, side)), text=processor.image_token, return_tensors="pt")
    except Exception as error:
        why = f"{told(error, with_kind=True)}{_explain(processor, parts)}"
        raise ModelError(f"model must have a processor that reads a plain image, got {why}") from error
    tiling = Tiling(parts.grid) if parts.anyres is None else parts.anyres.tile(side, side)
    tiles = () if parts.anyres is None else (len(tiling.boxes),)
    if tuple(inputs["pixel_values"].shape) != (1, *tiles, 3, side, side):
        wanted = " x ".join(map(str, (*tiles, 3, side, side)))
        raise ModelError(
            f"model must have an image processor that gives images of {wanted} for its vision tower, "
            f"got {' x '.join(map(str, inputs['pixel_values'].shape[1:]))}"
        )
    _check_count(inputs, "an image", parts.image_token_id, tiling.placeholders, _explain(processor, parts))


def _explain(processor: Any, parts: Parts) -> str:
    """Return what of a processor does not fit the model and may be why it counts wrong; empty where nothing is."""
    reasons = [
        f"its {setting} must be {value!r}, got {getattr(processor, setting)!r} (see processor_config.json)"
        for setting, value in _settings(parts).items()
        if getattr(processor, setting, value) != value
    ]
    name = getattr(processor, "image_token", "<image>")
    token = processor.tokenizer.convert_tokens_to_ids(name)
    if token != parts.image_token_id:
        known = "does not know it" if token in (None, processor.tokenizer.unk_token_id) else f"has it as {token}"
        reasons.append(
            f"its tokenizer must have {name!r} as token {parts.image_token_id} (image_token_id in "
            f"config.json), and {known}"
        )
    return "".join(f"; {reason}" for reason in reasons)


def _check_clip(processor: Any, video: VideoParts) -> None:
    """Do the same for a clip of two plain frames."""
    side = video.frame_size
    try:
        inputs = processor(text=processor.video_token, videos=[np.zeros((2, side, side, 3), np.uint8)])
    except Exception as error:
        raise ModelError(
            f"model must have a processor that reads a plain clip, got {told(error, with_kind=True)}"
        ) from error
    shape = tuple(inputs["pixel_values_videos"].shape)
    if shape != (1, 2, 3, side, side):
        wanted, got = f"3 x {side} x {side}", " x ".join(map(str, shape[2:]))
        raise ModelError(f"model must have a processor that gives frames of {wanted} for its vision tower, got {got}")
    _check_count(inputs, "a clip of two frames", video.token_id, video.clip(2).placeholders)


def _check_count(inputs: Any, what: str, token: int, wanted: int, why: str = "") -> None:
    count = int((inputs["input_ids"] == token).sum())
    if count != wanted:
        raise ModelError(
            f"model must have a processor that gives {wanted} placeholders {what} (token {token}), as many as the "
            "model has "
            f"visual tokens, got {count}{why}"
        )
