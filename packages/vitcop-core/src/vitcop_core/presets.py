"""The settings behind the paper's tables, for LLaVA-1.5-7B: 32 layers and 576 visual tokens an image."""

from vitcop_core.methods.vitcop import ViTCoP

#: Table 1's budgets, and the smallest of Table 8: 66.7 %, 77.8 %, 88.9 % and 94.4 % of 576 tokens pruned.
BUDGETS = (192, 128, 64, 32)


def table_4(retained_tokens: int | float = 64) -> dict[str, ViTCoP]:
    """The ablations of Table 4 by the paper's names, all at the same budget.

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


def table_7(retained_tokens: int | float = 64) -> dict[tuple[int, int], ViTCoP]:
    """The cut layers of Table 7, all at the same budget."""
    layers = ((2, 22), (1, 22), (3, 22), (2, 17), (2, 27))
    return {pair: ViTCoP(retained_tokens=retained_tokens, layers=pair) for pair in layers}
