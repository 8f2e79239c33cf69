"""Visual token pruning for LLaVA-family models: plans, operators and methods, in plain PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcop_core._version import __version__
from vitcop_core.lazy import lazy_names

if TYPE_CHECKING:
    from vitcop_core import ops
    from vitcop_core.cost import LanguageModelShape
    from vitcop_core.methods import (
        DivPrune,
        EarlyViTCoP,
        FastV,
        Method,
        PyramidDrop,
        SparseVLM,
        VisionZip,
        VisPruner,
        ViTCoP,
    )
    from vitcop_core.parsing import find_method
    from vitcop_core.plan import DecoderCut, Plan, VisionCut, identity_plan, pooled_plan
    from vitcop_core.schedule import Ratios, default_center_ratio, default_layers, feasible_range, solve_ratios
    from vitcop_core.tokens import Clusters, DecoderView, PromptView, Selection, VisionSelection, VisionView

__all__ = [
    "Clusters",
    "DecoderCut",
    "DecoderView",
    "DivPrune",
    "EarlyViTCoP",
    "FastV",
    "LanguageModelShape",
    "Method",
    "Plan",
    "PromptView",
    "PyramidDrop",
    "Ratios",
    "Selection",
    "SparseVLM",
    "ViTCoP",
    "VisPruner",
    "VisionCut",
    "VisionSelection",
    "VisionView",
    "VisionZip",
    "__version__",
    "default_center_ratio",
    "default_layers",
    "feasible_range",
    "find_method",
    "identity_plan",
    "ops",
    "pooled_plan",
    "solve_ratios",
]

# Imported when first asked for: what only reads and writes files must not wait seconds for torch.
_HOMES: dict[str, tuple[str, ...]] = {
    "cost": ("LanguageModelShape",),
    "methods": (
        "DivPrune",
        "EarlyViTCoP",
        "FastV",
        "Method",
        "PyramidDrop",
        "SparseVLM",
        "ViTCoP",
        "VisPruner",
        "VisionZip",
    ),
    "ops": (),
    "parsing": ("find_method",),
    "plan": ("DecoderCut", "Plan", "VisionCut", "identity_plan", "pooled_plan"),
    "schedule": ("Ratios", "default_center_ratio", "default_layers", "feasible_range", "solve_ratios"),
    "tokens": ("Clusters", "DecoderView", "PromptView", "Selection", "VisionSelection", "VisionView"),
}


__getattr__, __dir__ = lazy_names(__name__, {f"{__name__}.{home}": names for home, names in _HOMES.items()})
