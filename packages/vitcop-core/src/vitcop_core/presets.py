"""The settings behind the paper's tables, for LLaVA-1.5-7B: 32 layers and 576 visual tokens an image."""

from fractions import Fraction

from vitcop_core.checks import MAX_LAYERS, check_int
from vitcop_core.methods.base import Method
from vitcop_core.methods.divprune import DivPrune
from vitcop_core.methods.fastv import FastV
from vitcop_core.methods.pyramiddrop import PyramidDrop
from vitcop_core.methods.sparsevlm import SparseVLM
from vitcop_core.methods.visionzip import VisionZip
from vitcop_core.methods.vispruner import VisPruner
from vitcop_core.methods.vitcop import ViTCoP

#: Table 1's budgets, and the smallest of Table 8: 66.7 %, 77.8 %, 88.9 % and 94.4 % of 576 tokens pruned.
BUDGETS = (192, 128, 64, 32)


def table_4(retained_tokens: int | float = 64) -> dict[str, ViTCoP]:
    """Return the ablations of Table 4 by the paper's names, all at the same budget.

    Without Stage I all tokens enter the language model, without Stage III the deep layers run on what Stage II kept;
    the other stages are solved again for the budget. The paper does not say how it chose them; the TFLOPs that it
    prints for the variant without Stage I (0.91 against 0.82) exceed the budget's.
    """
    return {
        "ViTCoP": ViTCoP(retained_tokens=retained_tokens),
        "w/o K-norm Guidance": ViTCoP(retained_tokens=retained_tokens, saliency="attention"),
        "w/o Attention Guidance": ViTCoP(retained_tokens=retained_tokens, clustering=False),
        "w/o Stage I Pruning": ViTCoP(retained_tokens=retained_tokens, stage_one=False),
        "w/o Stage III Pruning": ViTCoP(retained_tokens=retained_tokens, stage_three=False),
    }


def table_7(retained_tokens: int | float = 64, *, num_layers: int = 32) -> dict[tuple[int, int], ViTCoP]:
    """Return the cut layers of Table 7, all at the same budget.

    Args:
        retained_tokens: The budget.
        num_layers: Layers of the language model. Of another number than 32 the deep cut moves in proportion and the
            first stays: scaled, the table's three would be one.

    Raises:
        TypeError: An argument is not a number.
        ValueError: One is out of range, or there are too few layers for these cuts.
    """
    num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
    layers = ((2, 22), (1, 22), (3, 22), (2, 17), (2, 27))
    scaled = [(first, (deep * num_layers + 16) // 32) for first, deep in layers]
    return {pair: ViTCoP(retained_tokens=retained_tokens, layers=pair) for pair in scaled}


# The settings that each method's authors published, by the label under which tables give their results. What a label
# means differs: a plan's `average_tokens` is what can be compared.

#: Filtering after two layers. 30 tokens average 64.125, a little over the label.
FASTV = {192: FastV(keep=166), 128: FastV(keep=98), 64: FastV(keep=30)}

#: The published schedule of three drops (270 tokens on average), and lambda of four drops for smaller budgets.
PYRAMIDDROP = {
    270: PyramidDrop(ratios=(Fraction(1, 2), Fraction(1, 4), Fraction(1, 8))),
    192: PyramidDrop(ratio=0.581),
    128: PyramidDrop(ratio=0.437),
    64: PyramidDrop(ratio=0.196),
}

#: Version 1.5. Labels are lower than the averages: 206.5, 145.4, 114.1 and 82.25 tokens.
SPARSEVLM = {
    192: SparseVLM(counts=(300, 200, 110)),
    128: SparseVLM(counts=(303, 110, 36)),
    96: SparseVLM(counts=(238, 48, 26)),
    64: SparseVLM(counts=(66, 30, 17)),
}

#: Dominant and contextual tokens of each image or tile.
VISIONZIP = {192: VisionZip(counts=(162, 30)), 128: VisionZip(counts=(108, 20)), 64: VisionZip(counts=(54, 10))}


def equal_budgets(retained_tokens: int | float) -> dict[str, Method]:
    """Return the seven methods by the names that papers use, each solved for the same average number of tokens."""
    found: tuple[Method, ...] = (
        FastV(retained_tokens=retained_tokens),
        PyramidDrop(retained_tokens=retained_tokens),
        SparseVLM(retained_tokens=retained_tokens),
        VisionZip(retained_tokens=retained_tokens),
        DivPrune(retained_tokens=retained_tokens),
        VisPruner(retained_tokens=retained_tokens),
        ViTCoP(retained_tokens=retained_tokens),
    )
    return {type(method).__name__: method for method in found}
