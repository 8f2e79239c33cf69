"""The pruning methods, one a file. FastV, PyramidDrop, SparseVLM and VisionZip are to come, each as a file here."""

from vitcop_core.methods.base import Method
from vitcop_core.methods.vitcop import ViTCoP

__all__ = ["Method", "ViTCoP"]
