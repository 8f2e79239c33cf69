"""How long variants take and what memory they need, on a few questions, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vitcop_llava.tools.comparison.answers import Asker
from vitcop_llava.tools.comparison.questions import Item
from vitcop_llava.tools.comparison.variants import Variant
from vitcop_llava.tools.model.answer import prepare
from vitcop_llava.tools.model.loading import Loaded
from vitcop_llava.tools.model.measuring import Measured, measure


@dataclass(frozen=True)
class Timed:
    """One run of one variant."""

    variant: str
    measured: Measured


def time_variants(
    loaded: Loaded, asker: Asker, variants: Sequence[Variant], items: Sequence[Item], new_tokens: int
) -> Iterator[list[Timed]]:
    """Yield every variant on each question in turn, and once more before that on the first, to warm up; that is not
    reported.

    The variants take turns, and each question begins with another one, so that a noisy machine hits them alike.

    Args:
        loaded: The model.
        asker: Opens the questions, and prunes the model.
        variants: What to time.
        items: The questions; at least one.
        new_tokens: To generate for each, the first included.
    """
    for turn, item in enumerate([items[0], *items]):
        inputs, start = prepare(loaded, asker.open(item), item.question), turn % len(variants)
        runs = []
        for variant in [*variants[start:], *variants[:start]]:
            with asker.pruning(variant):
                runs.append(Timed(variant.name, measure(loaded.model, inputs, new_tokens=new_tokens)))
        if turn:
            yield runs
