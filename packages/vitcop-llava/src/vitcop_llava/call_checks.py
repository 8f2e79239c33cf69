"""Refuses calls that cannot be pruned, naming the argument; looks at shapes alone, but where it says otherwise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitcop_llava.families import Parts
from vitcop_llava.state import EncodedImages

Given = dict[str, Any]


def check_call(given: Given, parts: Parts) -> None:
    """Raises for a call with images that cannot be pruned.

    Raises:
        ValueError: More images than the prompt has room for, a feature other than the configured one, or gradient
            checkpointing.
    """
    encoded = (given.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:
        images, needed = len(encoded.pooler_output), sum(len(feature) for feature in encoded.pooler_output)
    else:  # sizes may be on the device: there the images tell when they are encoded
        images = len(given["pixel_values"])
        needed = images * parts.visual_tokens if parts.anyres is None else 0
    ids = given.get("input_ids")
    room = (given["inputs_embeds"][..., 0] if ids is None else ids).numel()
    if needed > room:  # the reverse takes counting placeholders, which transformers does
        raise ValueError(
            f"pixel_values: {images} images stand for {needed} placeholders in input_ids, which has {room} tokens in "
            "all; prompt and images must agree"
        )
    layer = given.get("vision_feature_layer")
    if layer is not None and layer not in (parts.feature_layer, parts.feature_layer - parts.vision_states):
        raise ValueError(f"vision_feature_layer: must be {parts.feature_layer}, as configured, got {layer!r}")
    if given.get("vision_feature_select_strategy") not in (None, "default"):
        raise ValueError(
            f"vision_feature_select_strategy: must be 'default', got {given['vision_feature_select_strategy']!r}"
        )
    if parts.language_model.training and getattr(parts.language_model, "gradient_checkpointing", False):
        raise ValueError(
            "model: gradient checkpointing runs the layers a second time outside the call that pruned them; "
            "switch it off, or call model.eval()"
        )


def check_text(ids: Tensor, image_token_id: int) -> None:
    """Raises for a prompt that has placeholders and no images; it is looked at once, where it begins.

    Raises:
        ValueError: It has.
    """
    found = int((ids == image_token_id).sum().item())
    if found:
        raise ValueError(
            f"pixel_values: the prompt holds {found} image placeholders (token {image_token_id}) in input_ids, and "
            "there is no image; give the images with the prompt, or leave the placeholders out"
        )


def check_encoded(encoded: EncodedImages | None, owner: int) -> EncodedImages:
    """Returns images that were encoded ahead of the call, if they were encoded under the same pruner, and whole.

    Raises:
        ValueError: They were not.
    """
    if encoded is None or encoded.owner != owner:
        raise ValueError(
            "mm_encoder_outputs: must be whole and encoded under the same pruner; images that were encoded outside the "
            "`with` block, or sliced by chunked prefill (prefill_chunk_size), cannot be pruned"
        )
    return encoded


def check_mask(given: Given, past: int) -> None:
    """Raises unless the attention mask is 2-D and covers the whole sequence, the cached part included.

    Raises:
        ValueError: It is not, or does not.
    """
    mask = given.get("attention_mask")
    if mask is None:
        return
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(f"attention_mask: must be 2-D, [batch, length], in a call that is pruned, got {shape}")
    tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
    if mask.shape[1] != past + tokens.shape[1]:
        raise ValueError(
            f"attention_mask: must cover {past + tokens.shape[1]} tokens ({past} in the cache, {tokens.shape[1]} new), "
            f"got shape {shape}"
        )
