"""A comparison as plain data: the part that another run repeats to the digit, and the times apart from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vitcop_llava.families import Parts
from vitcop_llava.tools.comparison.answers import Answered
from vitcop_llava.tools.comparison.costs import Cost, CostCounter, tilings_of
from vitcop_llava.tools.comparison.matching import RULE, is_right
from vitcop_llava.tools.comparison.questions import Fault, QuestionSet
from vitcop_llava.tools.comparison.statistics import CONFIDENCE, RESAMPLES, Estimate, estimate
from vitcop_llava.tools.comparison.stored import (
    Asking,
    Compared,
    Comparison,
    StoredEstimate,
    StoredTimes,
    StoredTiming,
    StoredVariant,
    TimedVariant,
    Unreachable,
)
from vitcop_llava.tools.comparison.timing import Timed
from vitcop_llava.tools.comparison.variants import UNPRUNED, Variant, nearest_tokens


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


def comparison(
    asking: Asking, results: Results, parts: Parts, bytes_per_element: int, seed: int, questions: QuestionSet
) -> Comparison:
    """Return everything that does not depend on the clock.

    Args:
        asking: Of which model the questions were asked, and how.
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
    asked = {each.sizes for each in results.answered}
    seen = {tiling.units for sizes in asked for tiling in tilings_of(sizes, parts)}
    layouts = sorted(seen, key=lambda units: (sum(units), units), reverse=True)
    rows = list[Compared | Unreachable]()
    for variant in results.variants:
        about: StoredVariant = {
            "name": variant.name,
            "label": variant.label,
            "retain": variant.retain,
            "settings": variant.settings,
        }
        if variant.name not in costs:
            nearest = nearest_tokens(variant, parts.shape.num_layers, layouts)
            rows.append({**about, "problem": results.problems[variant.name], "nearest_tokens": nearest})
            continue
        cost, answers, found = costs[variant.name], right[variant.name], estimates[variant.name]
        row: Compared = {
            **about,
            "problem": None,
            "nearest_tokens": None,
            "tokens": cost.tokens,
            "macs": cost.macs,
            "kv_bytes": cost.kv_bytes,
            "tokens_per_layer": cost.tokens_per_layer,
            "right": sum(answers),
            "kinds": _by_kind(results.answered, answers),
            "accuracy": _stored(found.accuracy),
            "difference": _stored(found.difference),
            "kept": None if found.kept is None else _stored(found.kept),
        }
        rows.append(row)
    faults = sorted(results.faults, key=lambda fault: fault.number)
    return {
        **asking,
        "questions": len(results.answered),
        "images": len(set(groups)),
        "clips": len({each.item.group for each in results.answered if each.item.is_about_video}),
        "source": questions.source,
        "digest": questions.digest,
        "faults": [{"number": fault.number, "error": fault.error} for fault in faults],
        "matching": RULE,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": seed,
        "variants": rows,
    }


def _by_kind(answered: Sequence[Answered], right: Sequence[bool]) -> dict[str, list[int]]:
    """Return right answers and questions of each kind."""
    found: dict[str, list[int]] = {}
    for each, was_right in zip(answered, right, strict=True):
        if each.item.kind is not None:
            counts = found.setdefault(each.item.kind, [0, 0])
            counts[0] += was_right
            counts[1] += 1
    return found


def _stored(found: Estimate) -> StoredEstimate:
    return {"value": found.value, "low": found.low, "high": found.high}


def timing(runs: Sequence[Timed], new_tokens: int) -> StoredTiming:
    """Return every run of each variant, and the medians."""
    found: dict[str, list[StoredTimes]] = {}
    for run in runs:
        times = run.measured
        found.setdefault(run.variant, []).append(
            {
                "prefill_seconds": times.prefill_seconds,
                "token_seconds": times.token_seconds,
                "peak_bytes": times.peak_bytes,
                "cache_bytes": times.cache_bytes,
            }
        )
    return {"new_tokens": new_tokens, "variants": {name: _medians(each) for name, each in found.items()}}


def _medians(runs: list[StoredTimes]) -> TimedVariant:
    return {
        "runs": runs,
        "prefill_seconds": _median(run["prefill_seconds"] for run in runs),
        "token_seconds": _median(run["token_seconds"] for run in runs),
        "peak_bytes": _median(run["peak_bytes"] for run in runs),
        "cache_bytes": _median(run["cache_bytes"] for run in runs),
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
