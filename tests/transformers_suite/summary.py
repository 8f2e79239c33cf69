"""What a compared run is told as, and whether it pruned what it should have."""

from __future__ import annotations

from transformers_suite.outcomes import Comparison, RunResult

LEAST_WRAPPED = {
    "LlavaForConditionalGeneration": 100,
    "LlavaModel": 100,
    "LlavaNextForConditionalGeneration": 100,
    "LlavaNextModel": 100,
    "LlavaNextVideoForConditionalGeneration": 100,
    "LlavaNextVideoModel": 100,
}
"""Models of each class that a whole run has to prune: without them it would compare nothing with nothing."""

LEAST_CUTS = {"vision": 300, "decoder": 200, "tests": 100}
"""Cuts that a whole run in the pruned mode has to make."""


def describe(comparison: Comparison, result: RunResult, mode: str) -> list[str]:
    """The lines about one mode."""
    wrapped, alone = sum(result.wrapped.values()), sum(result.left_alone.values())
    known, wrong = len(comparison.expected), len(comparison.unexpected)
    lines = [
        f"{mode}: {comparison.compared} tests pass unpruned; {known} differ as expected, {wrong} differ unexpectedly",
        f"{mode}: {wrapped} models wrapped ({_counts(result.wrapped)}), {alone} left alone",
        *(f"  left alone, {count}: {reason}" for reason, count in sorted(result.left_alone.items())),
    ]
    if any(result.cuts.values()):
        tests = result.cuts.get("tests", 0)
        made = {name: count for name, count in result.cuts.items() if name != "tests"}
        lines.append(f"{mode}: cuts made: {_counts(made)}, in {tests} tests")
    for test in comparison.unexpected:
        message = result.messages.get(test, "").strip().partition("\n")[0]
        lines.append(f"  DIFFERS ({result.outcomes[test]}): {test}: {message}")
    lines += [f"  STALE, passes although it is listed: {test}" for test in comparison.stale]
    lines += [f"  MISSING, ran unpruned alone: {test}" for test in comparison.missing]
    return lines


def shortfalls(result: RunResult, mode: str) -> list[str]:
    """What a whole run should have done more of, as lines; none where all is well."""
    floors = [(result.wrapped, LEAST_WRAPPED, "models wrapped")]
    if mode == "pruned":
        floors.append((result.cuts, LEAST_CUTS, "cuts"))
    return [
        f"{mode}: only {found.get(name, 0)} {what} ({name}); at least {least} are due"
        for found, due, what in floors
        for name, least in due.items()
        if found.get(name, 0) < least
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
