"""The pruning methods, one a file: ViTCoP, and those that it is compared with."""

from vitcop_core.methods.base import Method
from vitcop_core.methods.fastv import FastV
from vitcop_core.methods.pyramiddrop import PyramidDrop
from vitcop_core.methods.sparsevlm import SparseVLM
from vitcop_core.methods.visionzip import VisionZip
from vitcop_core.methods.vitcop import ViTCoP

__all__ = ["FastV", "Method", "PyramidDrop", "SparseVLM", "ViTCoP", "VisionZip"]
