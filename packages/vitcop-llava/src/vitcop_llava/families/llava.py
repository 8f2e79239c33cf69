"""LLaVA-1.5: a CLIP tower, a two-layer projector, and one run of placeholders an image."""

from __future__ import annotations

from torch import nn

from vitcop_llava.families.base import Parts, check_decoder, decoder_shape

LANGUAGE_MODELS = ("LlamaModel", "MistralModel", "Qwen2Model")
TOWERS = ("CLIPVisionModel",)


def locate(model: nn.Module) -> Parts:
    """The parts of a ``LlavaForConditionalGeneration``.

    Raises:
        ValueError: for a tower other than CLIP's (Stage I ranks patches by the attention of its CLS token), a selected
            feature that is not one layer's patches, or a language model that is not supported.
    """
    config, base = model.config, model.model
    tower, language_model = base.vision_tower, base.language_model
    if type(tower).__name__ not in TOWERS:
        raise ValueError(
            f"model: its vision tower is a {type(tower).__name__}; supported: {', '.join(TOWERS)} "
            "(Stage I needs a CLS token whose attention ranks the patches)"
        )
    if config.vision_feature_select_strategy != "default":
        raise ValueError(
            "model: vision_feature_select_strategy must be 'default' (the patches without CLS), "
            f"got {config.vision_feature_select_strategy!r}"
        )
    check_decoder(language_model, LANGUAGE_MODELS)
    vision = tower.config
    layer = config.vision_feature_layer
    count = vision.num_hidden_layers
    if not isinstance(layer, int) or not 1 <= (layer if layer >= 0 else count + 1 + layer) <= count:
        raise ValueError(
            "model: vision_feature_layer must be the index of one layer's output among the tower's "
            f"{count + 1} hidden states, got {layer!r}"
        )
    feature_layer = layer if layer >= 0 else count + 1 + layer
    side = vision.image_size // vision.patch_size
    return Parts(
        base=base,
        vision_tower=tower,
        vision_attention=tower.encoder.layers[feature_layer - 1].self_attn,
        feature_layer=feature_layer,
        projector=base.multi_modal_projector,
        language_model=language_model,
        rotary=language_model.rotary_emb,
        decoder_layers=language_model.layers,
        config=language_model.config,
        image_token_id=config.image_token_id,
        grid=(side, side),
        shape=decoder_shape(language_model.config),
    )
