"""A comparison as plain data: the part that another run repeats to the digit, and the times apart from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vitcop_llava.families import Parts
from vitcop_llava.tools.comparison.answers import Answered
from vitcop_llava.tools.comparison.costs import Cost, CostCounter, tiling_of
from vitcop_llava.tools.comparison.matching import RULE, is_right
from vitcop_llava.tools.comparison.questions import Fault, QuestionSet
from vitcop_llava.tools.comparison.statistics import CONFIDENCE, RESAMPLES, Estimates, estimate
from vitcop_llava.tools.comparison.timing import Timed
from vitcop_llava.tools.comparison.variants import UNPRUNED, Variant, nearest_tokens

Row = dict[str, Any]


@dataclass
class Results:
    """What came of the questions, and the variants that could not be asked.

    Attributes:
        variants: All that were wanted, the unpruned model first.
        problems: Why a variant cannot run, by name.
        answered: The questions that were asked.
        faults: Those that could not be.
    """

    variants: Sequence[Variant]
    problems: dict[str, str]
    answered: list[Answered] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, results: Sequence[Answered | Fault]) -> None:
        """Take in the results of a batch."""
        for result in results:
            if isinstance(result, Fault):
                self.faults.append(result)
            else:
                self.answered.append(result)

    def right(self, variant: Variant) -> list[bool]:
        """Return whether the variant answered each question right."""
        return [is_right(each.said[variant.name], each.item.answers) for each in self.answered]

    def costs(self, parts: Parts, bytes_per_element: int) -> dict[str, Cost]:
        """Return the mean cost of each variant that can run; one whose budget does not fit some image joins the
        problems.
        """
        found = {}
        questions = [(each.sizes, each.text_tokens) for each in self.answered]
        for variant in self.variants:
            if variant.name in self.problems:
                continue
            try:
                found[variant.name] = CostCounter(variant.method, parts, bytes_per_element).mean(questions)
            except ValueError as error:
                self.problems[variant.name] = str(error)
        return found


def comparison(results: Results, parts: Parts, bytes_per_element: int, seed: int, questions: QuestionSet) -> Row:
    """Everything that does not depend on the clock.

    Args:
        results: At least one question must have been asked.
        parts: The model.
        bytes_per_element: Of the cache.
        seed: Of the resampling.
        questions: Where the questions came from.
    """
    costs = results.costs(parts, bytes_per_element)
    able = [variant for variant in results.variants if variant.name in costs]
    right = {variant.name: results.right(variant) for variant in able}
    groups = [each.item.group for each in results.answered]
    estimates = estimate(right, groups, UNPRUNED.name, seed=seed)
    sizes = {size for each in results.answered for size in each.sizes}
    layouts = sorted(
        {tiling_of(size, parts).units for size in sizes}, key=lambda units: (sum(units), units), reverse=True
    )
    rows = []
    for variant in results.variants:
        row: Row = {"name": variant.name, "label": variant.label, "retain": variant.retain}
        row |= {"settings": variant.settings}
        if variant.name in costs:
            row |= {"problem": None, "nearest_tokens": None, **asdict(costs[variant.name])}
            row |= {"right": sum(right[variant.name]), "kinds": _by_kind(results.answered, right[variant.name])}
            row |= _as_row(estimates[variant.name])
        else:
            nearest = nearest_tokens(variant, parts.shape.num_layers, layouts)
            row |= {"problem": results.problems[variant.name], "nearest_tokens": nearest}
        rows.append(row)
    return {
        "questions": len(results.answered),
        "images": len(set(groups)),
        "clips": len({each.item.group for each in results.answered if each.item.is_about_video}),
        "source": questions.source,
        "digest": questions.digest,
        "faults": [asdict(fault) for fault in sorted(results.faults, key=lambda fault: fault.number)],
        "matching": RULE,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": seed,
        "variants": rows,
    }


def _by_kind(answered: Sequence[Answered], right: Sequence[bool]) -> dict[str, list[int]]:
    """Right answers and questions of each kind."""
    found: dict[str, list[int]] = {}
    for each, was_right in zip(answered, right, strict=True):
        if each.item.kind is not None:
            counts = found.setdefault(each.item.kind, [0, 0])
            counts[0] += was_right
            counts[1] += 1
    return found


def _as_row(found: Estimates) -> Row:
    return {name: estimate and asdict(estimate) for name, estimate in vars(found).items()}


def timing(runs: Sequence[Timed], new_tokens: int) -> Row:
    """Return every run of each variant, and the medians."""
    found: dict[str, Row] = {}
    for run in runs:
        row = found.setdefault(run.variant, {"runs": []})
        row["runs"].append(asdict(run.measured))
    for row in found.values():
        for name in ("prefill_seconds", "token_seconds", "peak_bytes", "cache_bytes"):
            values = [run[name] for run in row["runs"] if run[name] is not None]
            row[name] = statistics.median(values) if values else None
    return {"new_tokens": new_tokens, "variants": found}
