"""Visual token pruning for LLaVA models in Hugging Face transformers, without training and without a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcop_core.lazy import lazy_names

if TYPE_CHECKING:
    from vitcop_core import (
        DivPrune,
        EarlyViTCoP,
        FastV,
        LanguageModelShape,
        Method,
        Plan,
        PyramidDrop,
        SparseVLM,
        VisionZip,
        VisPruner,
        ViTCoP,
        find_method,
    )
    from vitcop_llava.families.tiling import Tiling, tile_image
    from vitcop_llava.prefix.embeddings import embed_images
    from vitcop_llava.prefix.image_prefix import ImagePrefix, encode_image
    from vitcop_llava.pruner import Pruner, prune, pruner_of
    from vitcop_llava.report import FeatureScaleWarning, Report, Survivors

__all__ = [
    "DivPrune",
    "EarlyViTCoP",
    "FastV",
    "FeatureScaleWarning",
    "ImagePrefix",
    "LanguageModelShape",
    "Method",
    "Plan",
    "Pruner",
    "PyramidDrop",
    "Report",
    "SparseVLM",
    "Survivors",
    "Tiling",
    "ViTCoP",
    "VisPruner",
    "VisionZip",
    "embed_images",
    "encode_image",
    "find_method",
    "prune",
    "pruner_of",
    "tile_image",
]

__version__ = "0.2.0"

# Imported when first asked for: the command line must not wait seconds for torch and transformers to print its help.
_HOMES = {
    "vitcop_core": (
        "DivPrune",
        "EarlyViTCoP",
        "FastV",
        "LanguageModelShape",
        "Method",
        "Plan",
        "PyramidDrop",
        "SparseVLM",
        "ViTCoP",
        "VisPruner",
        "VisionZip",
        "find_method",
    ),
    "vitcop_llava.families.tiling": (
        "Tiling",
        "tile_image",
    ),
    "vitcop_llava.prefix.embeddings": ("embed_images",),
    "vitcop_llava.prefix.image_prefix": (
        "ImagePrefix",
        "encode_image",
    ),
    "vitcop_llava.pruner": (
        "Pruner",
        "prune",
        "pruner_of",
    ),
    "vitcop_llava.report": (
        "FeatureScaleWarning",
        "Report",
        "Survivors",
    ),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
