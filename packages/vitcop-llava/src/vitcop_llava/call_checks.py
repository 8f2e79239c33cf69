"""Refuses calls that cannot be pruned, naming the argument; looks at shapes alone, but where it says otherwise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitcop_llava.families import Parts
from vitcop_llava.state import EncodedImages

Given = dict[str, Any]


PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
"""The argument of ``forward`` that each kind of input comes in."""


def check_call(given: Given, parts: Parts) -> None:
    """Raises for a call with images or clips that cannot be pruned.

    Raises:
        ValueError: More images or clips than the prompt has room for, a feature other than the configured one, or
            gradient checkpointing.
    """
    ids = given.get("input_ids")
    room = (given["inputs_embeds"][..., 0] if ids is None else ids).numel()
    for kind in parts.token_ids:
        images, needed = _needed(kind, given, parts)
        if needed > room:  # the reverse takes counting placeholders, which transformers does
            raise ValueError(
                f"{PIXELS[kind]}: {images} {kind}s stand for {needed} placeholders in input_ids, which has {room} "
                "tokens in all; prompt and images must agree"
            )
    check_feature_choice(given, parts)
    if parts.language_model.training and getattr(parts.language_model, "gradient_checkpointing", False):
        raise ValueError(
            "model: gradient checkpointing runs the layers a second time outside the call that pruned them; "
            "switch it off, or call model.eval()"
        )


def _needed(kind: str, given: Given, parts: Parts) -> tuple[int, int]:
    """How many images or clips there are, and how many placeholders they stand for, as far as shapes tell."""
    encoded = (given.get("mm_encoder_outputs") or {}).get(kind)
    if encoded is not None:
        return len(encoded.pooler_output), sum(len(feature) for feature in encoded.pooler_output)
    # Sizes may be on the device, and clips are looked at when they are encoded: then the images themselves tell.
    pixels = given.get(PIXELS[kind])
    images = 0 if pixels is None else len(pixels)
    return images, images * parts.visual_tokens if kind == "image" and parts.anyres is None else 0


def check_feature_choice(given: Given, parts: Parts) -> None:
    """Raises where a call asks for another feature of the vision tower than the configured one.

    Raises:
        ValueError: It does.
    """
    layer = given.get("vision_feature_layer")
    if layer is not None and layer not in (parts.feature_layer, parts.feature_layer - parts.vision_states):
        raise ValueError(f"vision_feature_layer: must be {parts.feature_layer}, as configured, got {layer!r}")
    if given.get("vision_feature_select_strategy") not in (None, "default"):
        raise ValueError(
            f"vision_feature_select_strategy: must be 'default', got {given['vision_feature_select_strategy']!r}"
        )


def check_text(ids: Tensor, token_ids: dict[str, int]) -> None:
    """Raises for a prompt that has placeholders of a kind that there is none of; it is looked at once, at its start.

    Args:
        ids: ``[B, L]`` int64, the prompt.
        token_ids: The placeholders of the kinds that the call brings nothing of.

    Raises:
        ValueError: It has.
    """
    for kind, token_id in token_ids.items():
        found = int((ids == token_id).sum().item())
        if found:
            raise ValueError(
                f"{PIXELS[kind]}: the prompt holds {found} {kind} placeholders (token {token_id}) in input_ids, and "
                f"there is no {kind}; give the {kind}s with the prompt, or leave the placeholders out"
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
