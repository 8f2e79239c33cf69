"""Visual token pruning for LLaVA models in Hugging Face transformers, without training and without a fork."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitcop_core import (
        FastV,
        LanguageModelShape,
        Method,
        Plan,
        PyramidDrop,
        SparseVLM,
        VisionZip,
        ViTCoP,
        find_method,
    )
    from vitcop_llava.families.tiling import Tiling, tile_image
    from vitcop_llava.prefix.image_prefix import ImagePrefix, encode_image
    from vitcop_llava.pruner import Pruner, prune
    from vitcop_llava.report import FeatureScaleWarning, Report, Survivors

__all__ = [
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
    "VisionZip",
    "encode_image",
    "find_method",
    "prune",
    "tile_image",
]

__version__ = "0.1.0"

# Imported when first asked for: the command line must not wait seconds for torch and transformers to print its help.
_HOMES = {
    "FastV": "vitcop_core",
    "FeatureScaleWarning": "vitcop_llava.report",
    "ImagePrefix": "vitcop_llava.prefix.image_prefix",
    "LanguageModelShape": "vitcop_core",
    "Method": "vitcop_core",
    "Plan": "vitcop_core",
    "Pruner": "vitcop_llava.pruner",
    "PyramidDrop": "vitcop_core",
    "Report": "vitcop_llava.report",
    "SparseVLM": "vitcop_core",
    "Survivors": "vitcop_llava.report",
    "Tiling": "vitcop_llava.families.tiling",
    "ViTCoP": "vitcop_core",
    "VisionZip": "vitcop_core",
    "encode_image": "vitcop_llava.prefix.image_prefix",
    "find_method": "vitcop_core",
    "prune": "vitcop_llava.pruner",
    "tile_image": "vitcop_llava.families.tiling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
