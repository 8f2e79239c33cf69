"""The kept tokens of images as embeddings, for a language model that runs elsewhere: another process, or an engine."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitcop_core import Method
from vitcop_core.shown import shown_settings
from vitcop_llava.families import Parts, locate
from vitcop_llava.families.image_sizes import check_pixels
from vitcop_llava.hooks.active import encoding_ahead
from vitcop_llava.hooks.carrying import encoded_of
from vitcop_llava.hooks.kept import DROPPED
from vitcop_llava.hooks.state import EncodedImages
from vitcop_llava.pruner import active_owner, prune, settings_for


@torch.no_grad()
def embed_images(model: nn.Module, method: Method | None = None, **inputs: Any) -> list[Tensor]:
    """Encode images once, pruned, and return what enters the language model for each.

    The tensors are image embeddings as serving engines take them: in a prompt they stand where the unpruned model has
    all placeholders of the image. Give the processor's output as it is:

    >>> inputs = processor(images=images, text=prompts, return_tensors="pt")  # doctest: +SKIP
    >>> method = vitcop_llava.EarlyViTCoP(retained_tokens=64)  # doctest: +SKIP
    >>> embeddings = vitcop_llava.embed_images(model, method, **inputs)  # doctest: +SKIP

    Args:
        model: A model that `prune` takes, being pruned or not.
        method: One that cuts before the language model alone: `EarlyViTCoP`, `VisionZip`, `DivPrune` or `VisPruner`.
            None where ``model`` is being pruned with one.
        inputs: ``pixel_values`` and whatever else the model's ``get_image_features`` takes; other entries are ignored.

    Returns:
        For each image ``[k, d]`` in the language model's dtype, in the order of its placeholders.

    Raises:
        TypeError: The model is of another family, ``method`` is none, or ``pixel_values`` no tensor.
        ValueError: The method also cuts inside the language model, the model's positions have several axes, the images
            do not fit, or the method is missing, or another than the model is being pruned with.
    """
    parts = locate(model)
    settings, is_active = settings_for(parts, method)
    if parts.keeps_positions:
        raise ValueError(
            "model must number its tokens along one axis to embed images, got a "
            f"{type(parts.base).__name__}, whose tokens keep their places on the image, which embeddings do not tell; "
            "run it with prune()"
        )
    base: Any = parts.base
    known = inspect.signature(type(base).get_image_features).parameters
    given = {name: value for name, value in inputs.items() if name in known}
    if "pixel_values" in given:  # or the model says that it is missing
        check_pixels(given["pixel_values"])
    with nullcontext() if is_active else prune(model, settings.method):
        _check_cuts(parts, settings.method)
        with encoding_ahead(active_owner(parts.base)):
            output = base.get_image_features(**given, return_dict=True)
    features = [each.flatten(0, -2) for each in output.pooler_output]
    return _kept(features, encoded_of(output), settings.method)


def _check_cuts(parts: Parts, method: Method) -> None:
    """Raise unless a method cuts before the language model alone.

    Raises:
        ValueError: It cuts inside it.
    """
    if method.plan(parts.shape.num_layers, parts.tiling.units).decoder:
        raise _inside(method)


def _inside(method: Method) -> ValueError:
    return ValueError(
        f"method must cut before the language model alone, got {shown_settings(method)}, which also cuts inside "
        "it; use EarlyViTCoP, VisionZip, DivPrune or VisPruner"
    )


def _kept(features: list[Tensor], encoded: EncodedImages | None, method: Method) -> list[Tensor]:
    """Return the features of the placeholders that stay, image by image."""
    if encoded is None or not encoded.images:
        return features
    if any(image.plan.decoder for image in encoded.images):
        raise _inside(method)
    codes = encoded.codes
    if codes is None:
        return features
    own = codes.split([image.tiling.placeholders for image in encoded.images])
    return [each[code.to(each.device) != DROPPED] for each, code in zip(features, own, strict=True)]
