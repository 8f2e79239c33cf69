"""The pruning methods, one a file: ViTCoP, and those that it is compared with.

A method of your own is a file too, in any package: a subclass of :class:`Method`, or of :class:`BudgetedMethod`, which
has the budgets.
"""

from vitcop_core.methods._budget import BudgetedMethod
from vitcop_core.methods._vision import patch_saliency
from vitcop_core.methods.base import Method, unit_counts
from vitcop_core.methods.divprune import DivPrune
from vitcop_core.methods.early import EarlyViTCoP
from vitcop_core.methods.fastv import FastV
from vitcop_core.methods.pyramiddrop import PyramidDrop
from vitcop_core.methods.sparsevlm import SparseVLM
from vitcop_core.methods.visionzip import VisionZip
from vitcop_core.methods.vispruner import VisPruner
from vitcop_core.methods.vitcop import ViTCoP

__all__ = [
    "BudgetedMethod",
    "DivPrune",
    "EarlyViTCoP",
    "FastV",
    "Method",
    "PyramidDrop",
    "SparseVLM",
    "ViTCoP",
    "VisPruner",
    "VisionZip",
    "patch_saliency",
    "unit_counts",
]
