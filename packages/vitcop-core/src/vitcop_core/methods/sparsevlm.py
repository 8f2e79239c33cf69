"""SparseVLM: prune by the attention of the text that is about the image, and recycle what is dropped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from torch import Tensor

from vitcop_core import ops
from vitcop_core.checks import MAX_LAYERS, check_int, require
from vitcop_core.methods._budget import TOKENS, BudgetedMethod, average, check_counts, check_layers, cut_layers, largest
from vitcop_core.methods._reach import Sample, layers_reach, unreachable
from vitcop_core.methods._recycling import find_raters, recycle, recycled_from
from vitcop_core.methods.base import unit_counts
from vitcop_core.plan import DecoderCut, Plan, identity_plan
from vitcop_core.tokens import DecoderView, Selection

# After the layers of index 2, 6 and 15.
_LAYERS = (3, 7, 16)

# The published counts, from the fewest to the most, between "one token" and "all of them".
_PUBLISHED = ((0, 0, 0), (66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110), (TOKENS, TOKENS, TOKENS))

# Steps of the solver between two of them.
_STEPS = 10_000


@dataclass(frozen=True)
class SparseVLM(BudgetedMethod):
    """Settings of SparseVLM. Give exactly one of ``retained_tokens``, ``retention_ratio`` and ``counts``.

    Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025, in
    version 1.5 of its code. Text tokens whose embeddings match the image more than average are *raters*. After each of
    three layers the visual tokens are ranked by the raters' attention in that layer; a part of what is dropped is
    recycled: merged into a few tokens that follow the kept ones, and compete at later stages. Positions are packed, and
    generated tokens continue from there.

    A budget counts the recycled tokens, and is met on the line through the published counts: those for the labels 64,
    96, 128 and 192 average 82.25, 114.09, 145.41 and 206.5 tokens.

    Attributes:
        counts: The tokens of each image that each stage keeps, recycled ones apart, instead of a budget. A stage that
            has no more drops one.
        layers: The layers to cut before, by index; None for 3, 7 and 16 of 32, in proportion for other depths.

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or two contradict each other.
    """

    counts: tuple[int, int, int] | None = None
    layers: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget("counts")
        if self.counts is not None:
            check_counts(self.counts, "first", "second", "third")
        if self.layers is not None:
            check_layers(self.layers)
            require(len(self.layers) == len(_LAYERS), "layers", "three layers", self.layers)

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the cuts of one sample; see :meth:`Method.plan`. One that would recycle all that it drops is left out.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget is for more tokens than there are, or cannot be met with these layers (the message
                has the least that can); or the model has no such layer.
        """
        num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
        units, images = unit_counts(visual_tokens, images)
        tokens, budget = sum(units), self.budget(sum(units), images)
        if budget == tokens:
            return identity_plan(num_layers, units)
        layers = cut_layers(self.layers, _LAYERS, num_layers)
        if budget is None:
            assert self.counts is not None  # one of the three is given
            stages = _stages(tuple(count * images for count in self.counts), tokens)
        else:
            step = _solve(budget, num_layers, layers, tokens)
            if step is None:
                least = _average(num_layers, layers, tokens, step=0)
                raise unreachable(self, Sample(tokens, images), layers_reach(least / tokens, layers, num_layers))
            stages = _stages(_counts(step, tokens), tokens)
        cuts = [
            DecoderCut(layer, keep, "recycle", recycled=recycled, pack_positions=True)
            for layer, (keep, recycled) in zip(layers, stages, strict=True)
            if recycled
        ]
        return Plan(num_layers, units, None, tuple(cuts))

    def needs_prompt(self, cut: DecoderCut) -> bool:
        """Return True for every cut: the raters are found by the embeddings of text and image."""
        return True

    def cut_decoder(self, cut: DecoderCut, seen: DecoderView, keeps: Tensor | None = None) -> Selection:
        """Return the tokens with most attention from the raters, and recycled ones; see :meth:`Method.cut_decoder`.

        A row that keeps all that it has recycles nothing.
        """
        raters = seen.notes.get("raters")
        if raters is None:
            raters = seen.notes["raters"] = find_raters(seen.prompt())
        score = seen.attention_of(raters).detach()
        index = ops.top_tokens(score, cut.keep, lengths=seen.lengths, counts=keeps)
        # Where rows differ, the one that drops most need not be the one that keeps most.
        dropped = score.shape[1] - (cut.keep if keeps is None else 0)
        if dropped < 1:
            return Selection(index)
        made = recycle(seen.hidden, score, index, seen.lengths, dropped)
        return Selection(index, appended=made.hidden[:, : cut.recycled], appended_at=made.center[:, : cut.recycled])


def _stages(counts: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """Return what each stage keeps and recycles; (what there is, 0) where it would lose nothing."""
    stages = []
    for count in counts:
        keep = min(count, tokens - 1)
        recycled = recycled_from(tokens - keep)[1]
        stages.append((tokens, 0) if keep + recycled >= tokens else (keep, recycled))
        tokens = sum(stages[-1])
    return stages


def _counts(step: int, tokens: int) -> tuple[int, ...]:
    """Return the counts at a step of the line through the published ones."""
    piece, inside = divmod(step, _STEPS)
    low, high = _PUBLISHED[piece], _PUBLISHED[min(piece + 1, len(_PUBLISHED) - 1)]
    shares = [a + Fraction(inside, _STEPS) * (b - a) for a, b in zip(low, high, strict=True)]
    return tuple(max(1, math.floor(share * tokens / TOKENS)) for share in shares)


def _average(num_layers: int, layers: Sequence[int], tokens: int, step: int) -> Fraction:
    stages = _stages(_counts(step, tokens), tokens)
    return average(num_layers, tokens, [(layer, sum(stage)) for layer, stage in zip(layers, stages, strict=True)])


@lru_cache(maxsize=256)
def _solve(budget: Fraction, num_layers: int, layers: tuple[int, ...], tokens: int) -> int | None:
    """Return the last step on the line whose counts are within the budget; None if the first is not."""
    # Along the line one count falls by 3 and fewer dropped tokens are recycled; the average grows all the same, but for
    # steps of a token, so that the answer may be one of several and is within the budget in any case.
    return largest(lambda step: _average(num_layers, layers, tokens, step) <= budget, _STEPS * (len(_PUBLISHED) - 1))
