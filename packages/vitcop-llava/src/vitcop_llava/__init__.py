"""Visual token pruning for LLaVA models in Hugging Face transformers, without training and without a fork."""

from vitcop_core import LanguageModelShape, Method, Plan, ViTCoP

from vitcop_llava.prune import Pruner, prune
from vitcop_llava.report import FeatureScaleWarning, Report, Survivors

__all__ = [
    "FeatureScaleWarning",
    "LanguageModelShape",
    "Method",
    "Plan",
    "Pruner",
    "Report",
    "Survivors",
    "ViTCoP",
    "prune",
]

__version__ = "0.1.0"
