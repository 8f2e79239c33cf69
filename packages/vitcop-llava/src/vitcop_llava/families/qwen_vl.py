"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size as flat patches, of which each square becomes one token.

The towers have no CLS token. Most layers of Qwen2.5-VL's see windows of an image alone, so patches are scored in the
last layer that sees the image as a whole. Positions have three axes (time, row, column), and every token that is kept
keeps its own. Qwen3-VL's decoder adds features of the tower's to the visual tokens of its first layers.
"""

from __future__ import annotations

from typing import Any

from vitcop_llava.families.base import Parts, ScoredLayer, Squares
from vitcop_llava.families.decoder import check_decoder, decoder_shape, window_of

_TYPICAL = 32
"""Rows and columns of tokens of the image that stands for one of any size, where a size has to be named."""


def locate(model: Any) -> Parts:
    """Return the parts of a ``Qwen2VLForConditionalGeneration``, Qwen2.5-VL's or Qwen3-VL's.

    Raises:
        ValueError: The language model cannot be pruned.
    """
    config, base = model.config, model.model
    tower, language_model = base.visual, base.language_model
    check_decoder(language_model)
    text = language_model.config
    return Parts(
        base=base,
        vision_tower=tower,
        scored=_scored(tower),
        obstacle="",
        projector=tower.merger,
        language_model=language_model,
        embeddings=language_model.get_input_embeddings(),
        rotary=language_model.rotary_emb,
        decoder_layers=(*language_model.layers,),
        window=window_of(text),
        config=text,
        image_token_id=config.image_token_id,
        grid=(_TYPICAL, _TYPICAL),
        shape=decoder_shape(text),
        squares=Squares(config.video_token_id, tower.spatial_merge_size, _window(tower)),
        tower_path="visual",
        projector_path="visual.merger",
        keeps_positions=True,
        deepstack=len(getattr(tower, "deepstack_visual_indexes", None) or ()),
        deepstack_projectors=(*getattr(tower, "deepstack_merger_list", ()),),
    )


def _scored(tower: Any) -> ScoredLayer:
    """Return the last layer whose patches see the whole image; the projector reads what the last layer gives."""
    depth = len(tower.blocks)
    whole = getattr(tower, "fullatt_block_indexes", None)
    index = max(whole) if whole else depth - 1
    attention = tower.blocks[index].attn
    return ScoredLayer(
        attention, attention.num_heads, attention.scaling, states=depth + 1, index=index + 1, has_cls=False
    )


def _window(tower: Any) -> int | None:
    """Return the tokens on a side of the tower's windows; None where it has none."""
    size = getattr(tower, "window_size", None)
    return None if size is None else size // tower.spatial_merge_size // tower.patch_size
