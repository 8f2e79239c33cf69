"""Reads clips of video, of one length or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcop_llava.families.tiling import Tiling


def read_clips(pixels: Any, frame_size: int) -> tuple[list[int], Tensor]:
    """Return the frames of each clip, and all of them as the model takes them.

    The model looks at each frame by itself, so clips of different lengths are to it one long clip.

    Args:
        pixels: ``[clips, F, 3, s, s]``; or a list with ``[F, 3, s, s]`` for each clip, where they differ in length.
        frame_size: s.

    Returns:
        F of each clip; and ``[clips, F, 3, s, s]``, or ``[1, frames of all clips, 3, s, s]`` from a list.

    Raises:
        TypeError: There are no pixels, or a clip is not a tensor.
        ValueError: The shape is another, or a clip has no frame.
    """
    if isinstance(pixels, Tensor):
        _check_shape(pixels, 5, frame_size)
        return [pixels.shape[1]] * pixels.shape[0], pixels
    if not isinstance(pixels, list | tuple) or not pixels or not all(isinstance(clip, Tensor) for clip in pixels):
        kind = type(pixels).__name__
        raise TypeError(f"pixel_values_videos must be a tensor, or a list with a tensor for each clip, got {kind}")
    for clip in pixels:
        _check_shape(clip, 4, frame_size)
    return [len(clip) for clip in pixels], torch.cat([*pixels])[None]


def _check_shape(pixels: Tensor, dimensions: int, side: int) -> None:
    shape = tuple(pixels.shape)
    if len(shape) != dimensions or shape[-3:] != (3, side, side) or 0 in shape:
        wanted = f"[clips, frames, 3, {side}, {side}]" if dimensions == 5 else f"[frames, 3, {side}, {side}] in a list"
        raise ValueError(f"pixel_values_videos must be of shape {wanted}, with one frame at least, got {shape}")


def stacked(features: Sequence[Tensor], *, at_once: bool) -> Tensor | Sequence[Tensor]:
    """Return the features of clips, ``[n, d]`` each, as the one tensor that a model takes.

    Args:
        features: Of each clip.
        at_once: Whether the model takes them now. Otherwise `generate` may repeat them first, clip by clip, which works
            for clips of different lengths only while they are a list.

    Returns:
        ``[clips, n, d]``, or of different lengths ``[1, tokens of all clips, d]``, or the features as they are.
    """
    if len({len(clip) for clip in features}) == 1:
        return torch.stack([*features])
    return torch.cat([*features])[None] if at_once else features


def check_frames(clips: Sequence[Tiling], where: Tensor, counted: int | None) -> None:
    """Raise unless the clips are those that the prompt has placeholders for; count these once.

    transformers counts them as well, a moment later, and says less.

    Args:
        clips: The clips of the batch.
        where: ``[B, L]`` bool, the placeholders.
        counted: How many there are, where that is known already.

    Raises:
        ValueError: They disagree.
    """
    found = int(where.sum().item()) if counted is None else counted
    needed = sum(clip.placeholders for clip in clips)
    if found != needed:
        frames = f"clips of {', '.join(str(clip.frames) for clip in clips)} frames"
        raise ValueError(f"input_ids must hold {needed} placeholders for {frames} in pixel_values_videos, got {found}")
