"""Accuracy with confidence intervals, paired with the unpruned model's.

A bootstrap over images with percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13): each resample draws as many images as there are, with replacement, and takes all their questions along, because
questions about one image stand or fall together. All variants see the same resamples, so a difference from the unpruned
model is taken between answers to the same questions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK = 500


@dataclass(frozen=True)
class Estimate:
    """A share and its interval, which is None with fewer than two images."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimates:
    """What is said of one variant.

    Attributes:
        accuracy: a, right answers of all.
        difference: a - a0, where a0 is the unpruned model's.
        kept: a / a0; None where the unpruned model has no right answer.
    """

    accuracy: Estimate
    difference: Estimate
    kept: Estimate | None


def estimate(
    right: Mapping[str, Sequence[bool]], groups: Sequence[Hashable], baseline: str, *, seed: int = 0
) -> dict[str, Estimates]:
    """Estimate the accuracy of each variant, and compare it with the baseline's.

    Args:
        right: By variant, whether each question was answered right.
        groups: What each question is about.
        baseline: The variant that others are compared with.
        seed: Of the resampling.

    Raises:
        ValueError: There are no questions, or not as many answers as questions.
    """
    if not groups:
        raise ValueError("groups must hold at least one question, got none")
    if wrong := [name for name, answers in right.items() if len(answers) != len(groups)]:
        raise ValueError(f"right must have an answer to each of {len(groups)} questions, got others for {wrong[0]}")
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    which = np.array([places[group] for group in groups])
    # [groups, 1 + variants]: questions, and right answers of each variant. Whole numbers, so sums have no order.
    counts = np.zeros((len(places), 1 + len(right)), dtype=np.int64)
    for column, answers in enumerate([[True] * len(groups), *right.values()]):
        np.add.at(counts[:, column], which, answers)
    whole, drawn = _shares(counts.sum(0)[None]), _shares(_resample(counts, seed))
    reference = [*right].index(baseline)
    has_interval = len(places) > 1
    found = {}
    for column, name in enumerate(right):
        one, many = whole[:, column], drawn[:, column]
        base, bases = whole[:, reference], drawn[:, reference]
        kept = None
        if base[0] > 0:
            some = bases > 0  # a resample without a right answer of the baseline has no ratio
            kept = _estimate(one / base, many[some] / bases[some], has_interval)
        found[name] = Estimates(
            _estimate(one, many, has_interval), _estimate(one - base, many - bases, has_interval), kept
        )
    return found


def _resample(counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return ``[resamples, columns]``: the sums of each resample."""
    rng, groups = np.random.default_rng(seed), len(counts)
    parts = []
    for _ in range(RESAMPLES // _CHUNK):
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=_CHUNK)
        parts.append(weights @ counts)
    return np.concatenate(parts)


def _shares(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    return sums[:, 1:] / sums[:, :1]


def _estimate(value: NDArray[np.float64], drawn: NDArray[np.float64], has_interval: bool) -> Estimate:
    if not has_interval:
        return Estimate(float(value[0]), None, None)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value[0]), float(low), float(high))
