"""A vision tower, a projector and a decoder: what the families of LLaVA have in common."""

from __future__ import annotations

from typing import Any

from vitcop_llava.families.base import Parts, ScoredLayer
from vitcop_llava.families.decoder import check_decoder, decoder_shape, window_of

TOWERS = {"CLIPVisionModel": True, "SiglipVisionModel": False}
"""Towers that run the layers of ``encoder.layers`` one after the other, and whether they have a CLS token."""


def clip_parts(model: Any, obstacle: str = "") -> Parts:
    """Return the parts of a model, each unit of its images one square grid where Stage I can read the tower.

    Methods that cut before the language model need a CLIP or a SigLIP tower, and the patches of one of its layers,
    without CLS, as the selected feature; the parts say what stands in the way. Other methods take any tower.

    Args:
        model: With its tower as ``vision_tower`` and its projector as ``multi_modal_projector``.
        obstacle: What stands in the way of these methods in the family as a whole; empty where nothing does.

    Raises:
        ValueError: The language model cannot be pruned, or the tower has no one size of images.
    """
    config, base = model.config, model.model
    tower, language_model = base.vision_tower, base.language_model
    check_decoder(language_model)
    scored, obstacle = (None, obstacle) if obstacle else _scored(config, tower)
    vision = config.vision_config
    if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
        raise ValueError(
            f"model must have a vision tower that sees every image at one size, got a {type(tower).__name__} with "
            f"image_size={vision.image_size!r} and patch_size={vision.patch_size!r}"
        )
    side = vision.image_size // vision.patch_size
    return Parts(
        base=base,
        vision_tower=tower,
        scored=scored,
        obstacle=obstacle,
        projector=base.multi_modal_projector,
        language_model=language_model,
        embeddings=language_model.get_input_embeddings(),
        rotary=language_model.rotary_emb,
        decoder_layers=(*language_model.layers,),
        window=window_of(language_model.config),
        config=language_model.config,
        image_token_id=config.image_token_id,
        grid=(side, side),
        shape=decoder_shape(language_model.config),
        tower_layers=(*tower.encoder.layers,) if scored is not None else (),
    )


def _scored(config: Any, tower: Any) -> tuple[ScoredLayer | None, str]:
    """Return the layer that Stage I reads, or why there is none."""
    has_cls = TOWERS.get(type(tower).__name__)
    if has_cls is None:
        return None, f"a {type(tower).__name__} (supported: {', '.join(TOWERS)})"
    states, layer = tower.config.num_hidden_layers + 1, one_layer(config.vision_feature_layer)
    if not isinstance(layer, int) or not 1 <= (layer if layer >= 0 else states + layer) < states:
        return None, (
            f"vision_feature_layer={layer!r} instead of the index of one layer's output among the tower's {states} "
            "hidden states"
        )
    index = layer if layer >= 0 else states + layer
    attention = tower.encoder.layers[index - 1].self_attn
    scored = ScoredLayer(attention, attention.num_heads, attention.scale, states, index, has_cls)
    if config.vision_feature_select_strategy != scored.strategy:
        # CLS among the visual tokens has no place in the grid, and without CLS the first patch would go for one.
        return None, (
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} instead of "
            f"{scored.strategy!r}, which selects the patches of a {type(tower).__name__} and nothing else; use a "
            "method that cuts inside the language model alone, such as FastV"
        )
    return scored, ""


def one_layer(choice: Any) -> Any:
    """Return a choice of feature layers, the layer itself where the choice is a list of one."""
    return choice[0] if isinstance(choice, list | tuple) and len(choice) == 1 else choice
