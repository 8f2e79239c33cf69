"""A CLIP tower, a projector and a decoder: what the families of LLaVA have in common."""

from __future__ import annotations

from typing import Any

from vitcop_llava.families.base import Parts, check_decoder, decoder_shape

LANGUAGE_MODELS = ("LlamaModel", "MistralModel", "Qwen2Model")
TOWERS = ("CLIPVisionModel",)


def clip_parts(model: Any) -> Parts:
    """The parts of a model with a CLIP tower, each unit of its images one square grid.

    Raises:
        ValueError: The tower is another than CLIP's (Stage I ranks patches by the attention of its CLS token), the
            selected feature is not one layer's patches, or the language model is not supported.
    """
    config, base = model.config, model.model
    tower, language_model = base.vision_tower, base.language_model
    if type(tower).__name__ not in TOWERS:
        raise ValueError(
            f"model: its vision tower is a {type(tower).__name__}; supported: {', '.join(TOWERS)} "
            "(Stage I needs a CLS token whose attention ranks the patches)"
        )
    check_decoder(language_model, LANGUAGE_MODELS)
    feature_layer = _feature_layer(config, tower.config.num_hidden_layers + 1)
    attention = tower.encoder.layers[feature_layer - 1].self_attn
    side = tower.config.image_size // tower.config.patch_size
    return Parts(
        base=base,
        vision_tower=tower,
        vision_attention=attention,
        vision_heads=attention.num_heads,
        vision_scale=attention.scale,
        vision_states=tower.config.num_hidden_layers + 1,
        feature_layer=feature_layer,
        projector=base.multi_modal_projector,
        language_model=language_model,
        embeddings=language_model.get_input_embeddings(),
        rotary=language_model.rotary_emb,
        decoder_layers=language_model.layers,
        config=language_model.config,
        image_token_id=config.image_token_id,
        grid=(side, side),
        shape=decoder_shape(language_model.config),
    )


def _feature_layer(config: Any, states: int) -> int:
    """Index of the selected feature among the tower's hidden states, counted from 0."""
    if config.vision_feature_select_strategy != "default":
        raise ValueError(
            "model: vision_feature_select_strategy must be 'default' (the patches without CLS), "
            f"got {config.vision_feature_select_strategy!r}"
        )
    layer = config.vision_feature_layer
    if not isinstance(layer, int) or not 1 <= (layer if layer >= 0 else states + layer) < states:
        raise ValueError(
            "model: vision_feature_layer must be the index of one layer's output among the tower's "
            f"{states} hidden states, got {layer!r}"
        )
    return layer if layer >= 0 else states + layer
