"""Runs every variant once a round, those that are compared next to each other."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from tqdm import tqdm

Key = TypeVar("Key")
Found = TypeVar("Found")


@dataclass(eq=False)
class Runs(Generic[Key, Found]):
    """What the rounds found.

    Attributes:
        found: Of each variant, a measurement a round, rounds that warm up left out.
        failed: Why a variant was given up.
    """

    found: dict[Key, list[Found]] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)


def interleave(
    groups: Sequence[Mapping[Key, Callable[[], Found]]], *, repeats: int, warm_up: int = 1, seed: int, what: str
) -> Runs[Key, Found]:
    """Run the variants of all groups, in an order that differs by round.

    Groups are shuffled, and the variants within each, but a group stays together: what happens to the machine for a
    while happens to all of it. A variant that the device has no memory for is given up; the others go on.

    Args:
        groups: Variants by their keys, which are all different.
        repeats: Rounds that count.
        warm_up: Rounds before them that do not.
        seed: Of the order.
        what: Said on the progress bar, which stands on stderr where that is a terminal.
    """
    runs: Runs[Key, Found] = Runs({key: [] for group in groups for key in group})
    order, shuffled = random.Random(seed), [list(group.items()) for group in groups]
    total = (warm_up + repeats) * len(runs.found)
    with tqdm(total=total, desc=what, file=sys.stderr, disable=None, unit="run") as bar:
        for number in range(warm_up + repeats):
            order.shuffle(shuffled)
            for group in shuffled:
                order.shuffle(group)
                for key, run in group:
                    if key not in runs.failed:
                        _run(key, run, runs, counts=number >= warm_up)
                    bar.update()
    return runs


def _run(key: Key, run: Callable[[], Found], runs: Runs[Key, Found], *, counts: bool) -> None:
    try:
        found = run()
    except torch.OutOfMemoryError:
        runs.failed[key], runs.found[key] = "out of memory", []
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    else:
        if counts:
            runs.found[key].append(found)
