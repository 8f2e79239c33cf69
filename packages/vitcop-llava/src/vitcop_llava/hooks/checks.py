"""Reject calls that cannot be pruned, naming the argument. Checks read shapes only, unless noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor
from transformers.cache_utils import StaticCache

from vitcop_core import Method
from vitcop_llava.compat import CACHE, checkpoints_rerun_hooks
from vitcop_llava.families import Parts
from vitcop_llava.families.clip import one_layer
from vitcop_llava.hooks.arguments import tokens_of
from vitcop_llava.hooks.state import EncodedImages, Held

Given = dict[str, Any]


PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
"""The argument of ``forward`` that each kind of input comes in."""

_ENCODED = (*PIXELS.values(), "mm_encoder_outputs")
"""The arguments of a call that brings images or clips."""

_SEAMS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Arguments that tell an attention kernel where packed samples meet."""

_REPLACED = "leave the `with` block, or remove() the pruner, and prune the model as it is then"


_DIMENSIONS = {"input_ids": "[batch, length]", "inputs_embeds": "[batch, length, width]"}
"""Of what a call's tokens come in."""


def brings_images(given: Given) -> bool:
    """Return whether a call has an argument for images or clips."""
    return any(given.get(name) is not None for name in _ENCODED)


def check_tokens(given: Given) -> None:
    """Raise unless the tokens of a call come in a tensor of as many dimensions as it has to have.

    Raises:
        TypeError: They come in something else.
        ValueError: There are none, or the tensor has other dimensions.
    """
    tokens = tokens_of(given)
    if tokens is None:
        raise ValueError("input_ids must be given, or inputs_embeds in its place, got neither")
    name = "inputs_embeds" if given.get("input_ids") is None else "input_ids"
    wanted = _DIMENSIONS[name]
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name} must be a tensor {wanted}, got a {type(tokens).__name__}; give it to torch.tensor")
    if tokens.ndim != wanted.count(",") + 1:
        raise ValueError(f"{name} must be of shape {wanted}, got {tuple(tokens.shape)}")


def check_call(given: Given, parts: Parts) -> None:
    """Raise for a call with images or clips that cannot be pruned.

    Raises:
        ValueError: More images or clips than the prompt has room for, packed samples, or gradient checkpointing in a
            version of transformers whose checkpoints run hooks twice.
    """
    rows, length = tokens_of(given).shape[:2]
    room = rows * length
    for kind in parts.token_ids:
        images, needed = _needed(kind, given, parts)
        if needed > room:  # the reverse takes counting placeholders, which is done with the layout
            raise ValueError(
                f"input_ids must hold {needed} placeholders for the {images} {kind}s of {PIXELS[kind]}, got {room} "
                "tokens in all"
            )
    seams = [name for name in _SEAMS if given.get(name) is not None]
    if seams:
        raise ValueError(
            f"{seams[0]} must be None in a call with images, got the seams of packed samples: what is cut would move "
            "them; give each sample a row of its own, padded"
        )
    if is_checkpointing(parts) and checkpoints_rerun_hooks():
        raise ValueError(
            "model must be pruned without gradient checkpointing, got it switched on: this version of transformers "
            "runs "
            "the layers again, outside of the call that pruned them; switch it off, call model.eval(), or use "
            "transformers 5.20 or newer"
        )


def is_checkpointing(parts: Parts) -> bool:
    """Return whether the language model forgets activations in this call, to compute them again for the gradients."""
    return parts.language_model.training and bool(getattr(parts.language_model, "gradient_checkpointing", False))


def _needed(kind: str, given: Given, parts: Parts) -> tuple[int, int]:
    """Return how many images or clips there are, and how many placeholders they stand for, as far as shapes tell."""
    encoded = (given.get("mm_encoder_outputs") or {}).get(kind)
    if encoded is not None:
        return len(encoded.pooler_output), sum(len(feature) for feature in encoded.pooler_output)
    # Sizes may be on the device, and clips are looked at when they are encoded: then the images themselves tell.
    pixels = given.get(PIXELS[kind])
    if parts.squares is not None:
        return 0, 0  # grids tell, which are read when they are encoded
    images = 0 if pixels is None else len(pixels)
    is_known = kind == "image" and parts.anyres is None and parts.scored is not None
    return images, images * parts.visual_tokens if is_known else 0


def replaced_part(parts: Parts) -> str | None:
    """Return the name of a part that hooks are on and the model has no more; None where it has all of them."""
    base: Any = parts.base
    language_model: Any = parts.language_model
    found = {
        "vision tower": attrgetter(parts.tower_path)(base) is parts.vision_tower,
        "projector": attrgetter(parts.projector_path)(base) is parts.projector,
        "language model": base.language_model is parts.language_model,
        "decoder layers": [*language_model.layers] == [*parts.decoder_layers],
    }
    return next((name for name, is_same in found.items() if not is_same), None)


def check_unchanged(parts: Parts) -> None:
    """Raise unless the model still has the parts that hooks are on.

    Raises:
        ValueError: Its vision tower, projector, language model or a decoder layer was replaced since.
    """
    if name := replaced_part(parts):
        raise ValueError(f"model must keep its {name} while it is pruned, got another; {_REPLACED}")


def check_expected(*, is_opened: bool) -> None:
    """Raise where the language model runs for a base module whose forward is no longer the pruner's.

    Raises:
        ValueError: It does.
    """
    if not is_opened:
        raise ValueError(
            "model must keep the forward of its base module while it is pruned, got another: hooks of accelerate were "
            f"removed, or somebody put back an older one; {_REPLACED}"
        )


def check_ran(ran: int, layers: int) -> None:
    """Raise unless every decoder layer ran under its hook, once, in a call that lost tokens.

    Raises:
        ValueError: Some did not.
    """
    if ran != layers:
        raise ValueError(
            f"model must run each of its {layers} decoder layers once in a call that is pruned, got {ran} runs: "
            f"a part of it was replaced; {_REPLACED}"
        )


def check_held(features: Sequence[Tensor], held: Sequence[Held]) -> None:
    """Raise unless the tower gave on what stood for its features for the first decoder layers, and nothing else.

    Raises:
        ValueError: It did not.
    """
    if len(features) != len(held) or any(
        not each.is_made and own is not each.given for own, each in zip(features, held, strict=True)
    ):
        raise ValueError(
            "model must keep the parts of its vision tower that make features for its first decoder layers, and what "
            f"is on them, while it is pruned, got another; {_REPLACED}"
        )


def check_tower(parts: Parts, method: Method) -> None:
    """Raise unless a method that cuts before the language model can read the vision tower.

    Raises:
        ValueError: It has no layer to read, or no CLS token, and the method needs one.
    """
    scored = parts.scored
    if scored is None:
        raise ValueError(f"model must have a vision tower that Stage I can read, got {parts.obstacle}")
    if method.needs_cls and not scored.has_cls:
        raise ValueError(
            f"model must have a vision tower with a CLS token for {type(method).__name__} with these settings, got a "
            f"{type(parts.vision_tower).__name__}; use a method that ranks patches by the attention that they receive, "
            "as ViTCoP and VisionZip do with vision_saliency='received' or 'auto'"
        )


def check_feature_choice(given: Given, parts: Parts) -> None:
    """Raise where a call asks for another feature of the vision tower than the configured one.

    Raises:
        ValueError: It does, or the configured one is none that patches can be scored for.
    """
    scored = parts.scored
    if scored is None:
        raise ValueError(f"model must have a vision tower that Stage I can read, got {parts.obstacle}")
    layer = one_layer(given.get("vision_feature_layer"))
    if layer is not None and layer not in (scored.index, scored.index - scored.states):
        raise ValueError(f"vision_feature_layer must be {scored.index}, as configured, got {layer!r}")
    strategy = given.get("vision_feature_select_strategy")
    if strategy not in (None, scored.strategy):
        raise ValueError(f"vision_feature_select_strategy must be {scored.strategy!r}, as configured, got {strategy!r}")


def check_window(length: int, parts: Parts) -> None:
    """Raise for a sequence that some layer would not attend to as a whole.

    Raises:
        ValueError: It is longer than the language model's sliding window.
    """
    if parts.window is not None and length > parts.window:
        raise ValueError(
            f"input_ids must be at most {parts.window} tokens in all, which is the language model's sliding_window, "
            f"got {length}: a window would count what was dropped. Shorten the prompt or the answer, or load the model "
            "with sliding_window=None in its text configuration if it was trained so"
        )


def check_text_only(ids: Tensor, token_ids: dict[str, int], past: int) -> None:
    """Raise for a prompt that has placeholders of a kind that there is none of. Reads the prompt.

    Args:
        ids: ``[B, L]`` int64, the prompt, or the part of it that is new.
        token_ids: The placeholders of the kinds that the call brings nothing of.
        past: Tokens in the cache.

    Raises:
        ValueError: It has.
    """
    if ids.device.type != "meta":
        check_absent({kind: int((ids == token).sum().item()) for kind, token in token_ids.items()}, token_ids, past)


def check_absent(counts: Mapping[str, int], token_ids: Mapping[str, int], past: int) -> None:
    """Raise where a prompt has placeholders of kinds that there is none of.

    Args:
        counts: How many of each of these kinds there are.
        token_ids: The placeholders.
        past: Tokens in the cache.

    Raises:
        ValueError: There are some.
    """
    for kind, found in counts.items():
        token_id = token_ids[kind]
        if not found:
            continue
        if past:
            raise ValueError(
                f"past_key_values must hold the {kind}s of the prompt whose placeholders (token {token_id}) are in "
                f"input_ids, got a cache of {past} tokens and {found} placeholders after them, without "
                f"{PIXELS[kind]}. Give the {kind}s of a new turn with it. A pruned cache that was rebuilt from its "
                "keys and values, or cut, has lost which placeholders they stand for: pass on the cache itself"
            )
        raise ValueError(
            f"{PIXELS[kind]} must be given with the {found} {kind} placeholders (token {token_id}) in input_ids, got "
            "None; give it with the prompt, or leave the placeholders out"
        )


def check_encoded(encoded: EncodedImages | None, owner: int) -> EncodedImages:
    """Return images that were encoded ahead of the call, if they were encoded under the same pruner, and whole.

    Raises:
        ValueError: They were not.
    """
    if encoded is None or encoded.owner != owner:
        raise ValueError(
            "mm_encoder_outputs must be whole and encoded under the same pruner, by generate, got images that were "
            "encoded by get_image_features or outside the `with` block, or sliced by chunked prefill "
            "(prefill_chunk_size); give pixel_values"
        )
    return encoded


def check_mask(given: Given, past: int) -> None:
    """Raise unless the attention mask is 2-D and covers the whole sequence, the cached part included.

    Text that follows in a static cache may have a mask that is longer: its shape then stays from token to token.

    Raises:
        ValueError: It is not, or does not.
    """
    mask = given.get("attention_mask")
    if mask is None:
        return
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(f"attention_mask must be 2-D, [batch, length], in a call that is pruned, got {shape}")
    tokens = tokens_of(given)
    if len(mask) != len(tokens):
        raise ValueError(f"attention_mask must have {len(tokens)} rows, as many as the tokens, got shape {shape}")
    is_text = not brings_images(given)
    is_longer = mask.shape[1] > past + tokens.shape[1]
    if is_longer and is_text and isinstance(given.get(CACHE), StaticCache):
        return
    if mask.shape[1] != past + tokens.shape[1]:
        raise ValueError(
            f"attention_mask must cover {past + tokens.shape[1]} tokens ({past} in the cache, {tokens.shape[1]} new), "
            f"got shape {shape}"
        )


def check_positions(given: Given, *, has_axes: bool) -> None:
    """Raise unless there is a position id for every token.

    Args:
        given: The call's arguments.
        has_axes: Whether the model takes positions along several axes, ``[axes, batch, length]``, too.

    Raises:
        TypeError: They are not in a tensor.
        ValueError: There are more, or fewer.
    """
    positions = given.get("position_ids")
    if positions is None:
        return
    rows, length = tokens_of(given).shape[:2]
    wanted = f"a tensor [{rows} or 1, {length}]" + (f", or [axes, {rows} or 1, {length}]" if has_axes else "")
    if not isinstance(positions, Tensor):
        raise TypeError(f"position_ids must be {wanted}, got a {type(positions).__name__}")
    shape = tuple(positions.shape)
    if shape[-2:] not in ((rows, length), (1, length)) or len(shape) > (3 if has_axes else 2):
        raise ValueError(f"position_ids must be {wanted}, one for every token, got shape {shape}")
