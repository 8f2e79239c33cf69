"""Clips of which tokens are left out, for training: a random share enters, and later layers see fewer still."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcop_video.demo.events import FRAMES, EventClip

DEPTHS = (1, 6)
"""The layers before which a thinned clip loses tokens."""


@dataclass(frozen=True)
class Thinning:
    """How thin clips get; every batch draws its own shares, evenly between two bounds.

    Attributes:
        entering: the share of the tokens that enters the language model.
        middle: the share of these that the layers from the first of `DEPTHS` on see.
        deep: the share of those that the layers from the second on see.
        favor: tokens go in the order of a random number, which is multiplied by this where a shape is seen: at 1 all
            tokens are alike, and the smaller it is, the more of the ground goes before any of a shape.
    """

    entering: tuple[float, float]
    middle: tuple[float, float]
    deep: tuple[float, float]
    favor: tuple[float, float] = (1.0, 1.0)


EVENLY = Thinning((0.3, 1.0), (0.5, 1.0), (0.05, 0.5))
GROUND_FIRST = Thinning((0.2, 1.0), (0.3, 1.0), (0.03, 0.5), (0.0, 0.3))


def shows_shape(clip: EventClip, grid: int) -> NDArray[np.bool_]:
    """Return which tokens show a part of a shape, ``[8 * grid * grid]``: those that a square around a shape touches."""
    middles = (np.arange(grid) + 0.5) / grid
    shown = np.zeros((FRAMES, grid, grid), dtype=bool)
    for frame, places in enumerate(clip.places):
        for actor, place in zip(clip.actors, places, strict=True):
            if place is not None:
                across, down = (np.abs(middles - middle) < actor.radius + 0.5 / grid for middle in place)
                shown[frame] |= down[:, None] & across[None, :]
    return shown.ravel()


def leaving_order(shown: NDArray[np.bool_], thinning: Thinning, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a number for each token, ``[b, n]``: the larger, the sooner it goes."""
    return rng.random(shown.shape) * np.where(shown, rng.uniform(*thinning.favor), 1.0)


def entering_tokens(order: NDArray[np.float64], share: float, *, each_frame: bool) -> Tensor:
    """Return the tokens that enter the language model, ``[b, k]`` int64 ascending.

    Args:
        order: Of :func:`leaving_order`.
        share: How many of the tokens.
        each_frame: As many of each frame; else of the clip as a whole.
    """
    rows = len(order)
    units = order.reshape(rows, FRAMES if each_frame else 1, -1)
    kept = max(1, round(share * units.shape[2]))
    index = units.argsort(axis=2)[:, :, :kept] + np.arange(units.shape[1])[:, None] * units.shape[2]
    return torch.from_numpy(np.sort(index.reshape(rows, -1), axis=1))


def thinned_masks(
    mask: Tensor, first: int, order: NDArray[np.float64], thinning: Thinning, rng: np.random.Generator
) -> list[Tensor]:
    """Return the masks ``[b, 1, length, length]`` of the three parts of the language model: fewer visual tokens in
    each.

    A token that is gone is seen by none but itself, so that its row is never empty.

    Args:
        mask: Of the first part.
        first: Where the visual tokens start.
        order: Of the tokens that entered, ``[b, k]``.
        thinning: For the shares.
        rng: Draws them.
    """
    count, length = order.shape[1], mask.shape[-1]
    own, rank, share = torch.eye(length, dtype=torch.bool), order.argsort(axis=1).argsort(axis=1), 1.0
    masks = [mask]
    for low, high in (thinning.middle, thinning.deep):
        share *= rng.uniform(low, high)
        seen = torch.ones(len(mask), length, dtype=torch.bool)
        seen[:, first : first + count] = torch.from_numpy(rank < max(1, round(share * count)))
        masks.append(mask & (seen[:, None, None, :] | own))
    return masks
