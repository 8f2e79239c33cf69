"""What differs between the versions of transformers that are supported: the one place that knows of versions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""What forwards and their outputs call the cache: `past_key_values` before 5.24. Later versions take the old name from
callers, and say that it goes."""

ENCODE_AHEAD = "_prepare_multimodal_encoder_kwargs_for_generation"
"""The step of `generate` that encodes images ahead of the first forward; versions before 5.20 have none."""

KINDS = "mm_token_type_ids"
"""What tells Qwen-VL text from images and clips; before 5.20 or so `generate` hands all of it on with every token."""

PLACEHOLDER_MASK = "get_placeholder_mask"
"""The step of a forward that finds the placeholders, and holds their number against the features'. It waits for the
device twice, with the tower still at work and before the first layer is launched."""

GENERATE_MASKS = "create_masks_for_generate"
"""The method of a model, where it has one, that makes the masks which `generate` passes with a static cache."""

MAKE_CANDIDATES = "_get_candidate_generator"
"""The step of `generate` that prepares to draft candidates, which it then verifies."""


def checkpoints_rerun_hooks() -> bool:
    """Return whether gradient checkpointing runs a layer's hooks a second time, outside of the call: before 5.20 it
    does.
    """
    return "__call__" in vars(GradientCheckpointingLayer)


def named_cache(given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a forward with the cache under the name that this version of transformers gives it."""
    if CACHE == "past_key_values" or given.get("past_key_values") is None:
        return given
    return {CACHE if name == "past_key_values" else name: value for name, value in given.items() if name != CACHE}


def pixels_argument(get_features: Callable[..., Any]) -> str:
    """Return what the pixels of `get_video_features` are called, its first argument: transformers has renamed it."""
    return next(iter(inspect.signature(get_features).parameters))


def grids_argument(get_features: Callable[..., Any]) -> str:
    """Return what the grids of `get_image_features` or `get_video_features` are called, its second argument."""
    return [*inspect.signature(get_features).parameters][1]


def split_clips(
    features: Tensor | Sequence[Tensor], frames: Sequence[int], tokens: Sequence[int], newline: Tensor | None = None
) -> tuple[list[Tensor], bool]:
    """Return one entry for each clip, in the form in which this version of transformers expects it.

    Entries that are objects of their own can be told apart when `generate` repeats them, rows of one tensor cannot.

    Args:
        features: ``[clips, F * m, d]``, or as many ``[F, m, d]`` (before 5.20 or so); of clips that were joined to one,
            the same of that one. Where a newline follows the last frame, there is one token more (from 5.19 or so).
        frames: F of each clip.
        tokens: F * m of each clip.
        newline: ``[d]``, the token that follows the last frame; None where none does.

    Returns:
        The clips, with their newlines; and whether the model's forward appends these by itself.
    """
    if len(features) == len(frames):
        rows = [*features]
    else:
        (joined,) = features
        if joined.ndim == 3:
            return [*joined.split([*frames])], False
        ending = joined[sum(tokens) :]
        rows = [torch.cat([row, ending]) for row in joined[: sum(tokens)].split([*tokens])]
    if newline is None or len(rows[0]) > tokens[0]:
        return rows, False
    return [torch.cat([row, newline[None].to(row)]) for row in rows], True
