"""What a family adapter tells the hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from vitcop_core import LanguageModelShape
from vitcop_llava.tiling import Tiling, tile_image


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules that hooks go on, and the numbers that plans need.

    Attributes:
        base: The module whose forward takes ``input_ids`` and images and calls the language model.
        vision_tower: The image encoder; called once with all images.
        vision_attention: Self-attention of the vision layer whose output is the selected feature; it has ``q_proj`` and
            ``k_proj``.
        vision_heads: Heads of that attention.
        vision_scale: Factor on its scores.
        vision_states: Hidden states of the tower: its layers, and the embeddings.
        feature_layer: Index of the selected feature among the tower's hidden states, counted from 0 (the embeddings).
        projector: Takes ``[C, m, d_v]`` features to the language model's width.
        language_model: The decoder stack without its head.
        embeddings: Turns token ids into the language model's inputs.
        rotary: Turns hidden states and position ids into cosines and sines.
        decoder_layers: Its layers, each with ``self_attn.q_proj`` and ``self_attn.k_proj``.
        config: The language model's configuration.
        image_token_id: The placeholder's id in ``input_ids``.
        grid: Rows and columns of patches of one unit.
        shape: What costs are computed from.
        anyres: How images of any size are tiled; None where each is one unit.
        video: How clips are read; None for a model of images alone.
    """

    base: nn.Module
    vision_tower: nn.Module
    vision_attention: nn.Module
    vision_heads: int
    vision_scale: float
    vision_states: int
    feature_layer: int
    projector: nn.Module
    language_model: nn.Module
    embeddings: nn.Module
    rotary: nn.Module
    decoder_layers: nn.ModuleList
    config: PreTrainedConfig
    image_token_id: int
    grid: tuple[int, int]
    shape: LanguageModelShape
    anyres: Anyres | None = None
    video: Video | None = None

    @property
    def token_ids(self) -> dict[str, int]:
        """The placeholder's id of each kind of input, by its name in ``mm_encoder_outputs``."""
        return {"image": self.image_token_id} | ({} if self.video is None else {"video": self.video.token_id})

    @property
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
    """

    pinpoints: tuple[tuple[int, int], ...]
    tile_size: int
    patch_size: int

    def tile(self, height: int, width: int) -> Tiling:
        """How an image of that size lies in units."""
        return tile_image(height, width, pinpoints=self.pinpoints, tile_size=self.tile_size, patch_size=self.patch_size)

    @property
    def largest(self) -> Tiling:
        """How an image lies that fills the largest pinpoint."""
        return max((self.tile(*point) for point in self.pinpoints), key=lambda tiling: tiling.tokens)


@dataclass(frozen=True)
class Video:
    """How a family reads clips: frame by frame, as images that are one unit each, and with patches pooled.

    Attributes:
        token_id: The placeholder's id in ``input_ids``.
        grid: Rows and columns of tokens of one frame, after pooling.
        pool: Side of the square of patches that becomes one token.
        frame_size: Side of a frame in pixels.
    """

    token_id: int
    grid: tuple[int, int]
    pool: int
    frame_size: int

    def clip(self, frames: int) -> Tiling:
        """A clip of so many frames in units."""
        return Tiling(self.grid, frames=frames)


def decoder_shape(config: PreTrainedConfig) -> LanguageModelShape:
    """The sizes of a Llama-like language model."""
    heads = config.num_attention_heads
    return LanguageModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def check_decoder(language_model: Any, supported: tuple[str, ...]) -> None:
    """Raises unless the language model is one of ``supported`` and every layer attends to the whole sequence.

    Raises:
        ValueError: It is not; the message has what is.
    """
    name, config = type(language_model).__name__, language_model.config
    if name not in supported:
        raise ValueError(f"model: its language model is a {name}; supported: {', '.join(supported)}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if kinds != {"full_attention"} or window is not None:
        raise ValueError(
            f"model: its language model attends through a sliding window (sliding_window={window}); pruning needs "
            "full attention in every layer, for example sliding_window=None in the text configuration"
        )
