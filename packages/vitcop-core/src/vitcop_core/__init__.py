"""Visual token pruning for LLaVA-family models: plans, operators and methods, in plain PyTorch."""

from vitcop_core import ops
from vitcop_core._version import __version__
from vitcop_core.cost import LanguageModelShape
from vitcop_core.methods import FastV, Method, PyramidDrop, SparseVLM, VisionZip, ViTCoP
from vitcop_core.plan import DecoderCut, Plan, VisionCut, identity_plan, pooled_plan
from vitcop_core.schedule import Ratios, default_center_ratio, default_layers, feasible_range, solve_ratios
from vitcop_core.tokens import Clusters, DecoderView, PromptView, Selection, VisionSelection, VisionView

__all__ = [
    "Clusters",
    "DecoderCut",
    "DecoderView",
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
    "VisionCut",
    "VisionSelection",
    "VisionView",
    "VisionZip",
    "__version__",
    "default_center_ratio",
    "default_layers",
    "feasible_range",
    "identity_plan",
    "ops",
    "pooled_plan",
    "solve_ratios",
]
