"""What a family adapter tells the hooks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from vitcop_core import LanguageModelShape
from vitcop_llava.families.tiling import Tiling, interpolate_tiles, tile_image


@dataclass(frozen=True, eq=False)
class ScoredLayer:
    """The vision layer whose output is the selected feature, and whose attention Stage I scores patches by.

    Attributes:
        attention: Its self-attention, with ``q_proj`` and ``k_proj``. It is called with the layer's normed input.
        heads: Heads of that attention.
        scale: Factor on its scores.
        states: Hidden states of the tower: its layers, and the embeddings.
        index: Index of the selected feature among them, counted from 0 (the embeddings).
        has_cls: Whether the first of the tower's tokens is a CLS token, which the model leaves out of the selected
            feature; otherwise all of them are patches, and all are in it.
    """

    attention: nn.Module
    heads: int
    scale: float
    states: int
    index: int
    has_cls: bool = True

    @property
    def strategy(self) -> str:
        """The ``vision_feature_select_strategy`` that selects the patches, and nothing else."""
        return "default" if self.has_cls else "full"


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules that hooks go on, and the numbers that plans need.

    Attributes:
        base: The module whose forward takes ``input_ids`` and images and calls the language model.
        vision_tower: The image encoder; called once with all images.
        tower_layers: Its layers in their order: the output of layer i is hidden state i + 1. Empty for towers of other
            kinds.
        scored: The vision layer that Stage I reads; None where there is none that it could read.
        obstacle: What there is instead, for the message of an error; empty where there is a layer.
        projector: Takes ``[C, m, d_v]`` features to the language model's width.
        language_model: The decoder stack without its head.
        embeddings: Turns token ids into the language model's inputs.
        rotary: Turns hidden states and position ids into cosines and sines.
        decoder_layers: Its layers, each with ``self_attn.q_proj`` and ``self_attn.k_proj``.
        window: The longest sequence that every layer attends to as a whole; None for any.
        config: The language model's configuration.
        image_token_id: The placeholder's id in ``input_ids``.
        grid: Rows and columns of patches of one unit. Where there is no ``scored`` layer, an image may have other
            numbers of tokens: they are counted when it is encoded.
        shape: What costs are computed from.
        anyres: How images of any size are tiled; None where each is one unit.
        video: How clips are read, frame by frame; None for a model of images alone, and with ``squares``.
        squares: How images and clips of any size come as flat patches; None where they come as pixels.
        tower_path: The vision tower's name in ``base``.
        projector_path: Likewise the projector's.
        keeps_positions: Whether every token keeps its position, whatever was dropped before it. True for positions of
            several axes, which tell where on its image a token stands. Otherwise what follows a token that is dropped
            before the first layer moves up.
        deepstack: How many of the first decoder layers add features of the tower's to the visual tokens they give.
        deepstack_projectors: What makes these features, in the tower, of what is to be the projector's input in other
            models: squares of patches between two of its layers. Empty where all of them are to be made.
    """

    base: nn.Module
    vision_tower: nn.Module
    scored: ScoredLayer | None
    obstacle: str
    projector: nn.Module
    language_model: nn.Module
    embeddings: nn.Module
    rotary: nn.Module
    decoder_layers: tuple[nn.Module, ...]
    window: int | None
    config: PreTrainedConfig
    image_token_id: int
    grid: tuple[int, int]
    shape: LanguageModelShape
    tower_layers: tuple[nn.Module, ...] = ()
    anyres: Anyres | None = None
    video: VideoParts | None = None
    squares: Squares | None = None
    tower_path: str = "vision_tower"
    projector_path: str = "multi_modal_projector"
    keeps_positions: bool = False
    deepstack: int = 0
    deepstack_projectors: tuple[nn.Module, ...] = ()

    @property
    def token_ids(self) -> dict[str, int]:
        """The placeholder's id of each kind of input, by its name in ``mm_encoder_outputs``."""
        clips = self.video or self.squares
        return {"image": self.image_token_id} | ({} if clips is None else {"video": clips.token_id})

    @property
    def mixes_tokens(self) -> bool:
        """Whether some tokens are made of several patches behind the projector."""
        of_images = self.anyres is not None and self.anyres.most is not None
        return of_images or (self.video is not None and self.video.pool is None)

    @cached_property
    def tiling(self) -> Tiling:
        """How an image lies in units; of several ways the one with most tokens."""
        return Tiling(self.grid) if self.anyres is None else self.anyres.largest

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of one image before any cut; the most that there can be where sizes differ."""
        return self.tiling.tokens


@dataclass(frozen=True)
class Anyres:
    """How a family tiles images of any size.

    Attributes:
        pinpoints: Resolutions (height, width) that it knows.
        tile_size: Side of a tile in pixels.
        patch_size: Side of a patch in pixels.
        most: Tiles' worth of tokens that an image may have beside its base before the projected features of its tiles
            are interpolated to fewer; None where they never are.
        tiles_one: Whether only an image that is alone in its prompt is tiled. Others are one unit each, and end with a
            newline.
    """

    pinpoints: tuple[tuple[int, int], ...]
    tile_size: int
    patch_size: int
    most: int | None = None
    tiles_one: bool = False

    def tile(self, height: int, width: int) -> Tiling:
        """Return how an image of that size lies in units.

        Raises:
            ValueError: The image is so narrow that interpolating it leaves nothing.
        """
        sizes = {"tile_size": self.tile_size, "patch_size": self.patch_size}
        tiling = tile_image(height, width, pinpoints=self.pinpoints, **sizes)
        return tiling if self.most is None else interpolate_tiles(tiling, self.most)

    @property
    def untiled(self) -> Tiling:
        """How an image lies that shares its prompt with others."""
        side = self.tile_size // self.patch_size
        return Tiling((side, side), ending=True)

    @property
    def largest(self) -> Tiling:
        """How an image lies that fills the largest pinpoint."""
        return max((self.tile(*point) for point in self.pinpoints), key=lambda tiling: tiling.tokens)


@dataclass(frozen=True)
class VideoParts:
    """How a family reads clips: frame by frame, as images that are one unit each, and with patches pooled.

    Attributes:
        token_id: The placeholder's id in ``input_ids``.
        grid: Rows and columns of tokens of one frame, after pooling.
        pool: Side of the square of patches that becomes one token, before the projector; None where the projected
            features of a frame are interpolated to the grid.
        frame_size: Side of a frame in pixels.
        ending: Whether a newline follows the last frame of a clip.
        is_stacked: Whether the model takes the features of all clips as one tensor, and not as one for each.
    """

    token_id: int
    grid: tuple[int, int]
    pool: int | None
    frame_size: int
    ending: bool = False
    is_stacked: bool = False

    def clip(self, frames: int) -> Tiling:
        """Return a clip of so many frames in units."""
        return Tiling(self.grid, frames=frames, ending=self.ending)


@dataclass(frozen=True)
class Squares:
    """How a family takes images and clips of any size: as flat patches, each square of which becomes one token.

    The patches of a square follow each other. An image is one unit, and so is each step of a clip.

    Attributes:
        token_id: The placeholder's id of clips in ``input_ids``.
        side: Patches on a side of a square.
        window: Tokens on a side of the windows by which the tower orders its patches; None where it keeps their order.
    """

    token_id: int
    side: int
    window: int | None = None

    @property
    def patches(self) -> int:
        """Patches of one token."""
        return self.side**2

    def image(self, height: int, width: int) -> Tiling:
        """Return an image of so many rows and columns of patches."""
        return Tiling((height // self.side, width // self.side))

    def clip(self, steps: int, height: int, width: int) -> Tiling:
        """Return a clip of so many steps in time, each of so many rows and columns of patches."""
        return Tiling((height // self.side, width // self.side), frames=steps)


def __getattr__(name: str) -> Any:
    if name != "Video":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.Video will go: import VideoParts", DeprecationWarning, stacklevel=2)
    return VideoParts
