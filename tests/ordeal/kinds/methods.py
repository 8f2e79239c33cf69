"""Methods as texts: what the grammar makes, with values that fit and that do not, and what is left of damaged ones."""

from __future__ import annotations

import warnings
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

from ordeal.mutate import ODD_TEXTS, mutated_text
from ordeal.trials import Trial, demand, documented
from vitcop_core import Method, find_method
from vitcop_core.parsing import METHODS, find_methods

VALUES = (
    *("0", "1", "2", "-1", "6", "(1, 6)", "(1,)", "(6, 1)", "(1, 2, 3)", "()", "[1, 6]", "0.5", "1e400", "-1e400"),
    *("True", "False", "None", "'paper'", "'official'", "'auto'", "'received'", "''", "16", "1/9", "10**9", "0x10"),
    *("1_000", "9" * 400, "{}", "{1: 2}", "...", "1j", "b'a'", "f'{1}'", "lambda: 0", "(1, (2, 3))", "-0.0", "1e-320"),
)
GOOD = (
    *("vitcop(layers=(1, 6))", "vitcop(cutoff_distance=16, compat='official')", "vitcop(stage_one=False)", "fastv"),
    *("vitcop(vision_saliency='received', cutoff_distance='auto')", "vitcop(saliency='attention')", "visionzip"),
    *("vitcop(ratios=(0.5, 0.4, 0.1))", "earlyvitcop(ranking='layer0')", "fastv(layer=3)", "pyramiddrop", "sparsevlm"),
    *("vitcop(pi1=0.5, center_ratio=0.1, spatial_threshold=0.3)", "vitcop(clustering=False)", "divprune, vispruner"),
)
SHAPES = (*((32, 576), (40, 2880), (8, 144)) * 3, (1, 1), (2, 1), (6, 16), (0, 5), (10**4, 10**6))
BUDGETS: tuple[dict[str, Any], ...] = (
    *({"retained_tokens": count} for count in (32, 40, 64, 64.5, 1, 16, 576, 10**9, 0.5)),
    *({"retention_ratio": ratio} for ratio in (1, Fraction(1, 9), 1 / 3, 1e-9, Fraction(10**30, 10**31))),
    {},
)


def prepare(folder: Path) -> Trial:
    """A trial reads a text, plans with what it names, and reads what it is called again."""
    warnings.simplefilter("ignore", DeprecationWarning)
    names = [*METHODS, *METHODS.values()]
    settings = sorted({field.name for kind in METHODS for field in fields(_class_of(kind))})

    def trial(random: Random) -> None:
        text, budget = written(names, settings, random), random.choice(BUDGETS)
        with documented(ValueError):
            found = find_methods(text, **budget)
        demand(len(found) > 0 and all(isinstance(method, Method) for _, method in found), f"{text!r} is {found!r}")
        for label, method in found:
            if not any(short in label for short in ("about 10**", "...")):
                again = find_method(called(label), **budget)
                demand(again == method, f"{text!r} is called {label!r}, which is {again!r}")
        with documented(ValueError, TypeError):
            for _, method in found:
                plan = method.plan(*random.choice(SHAPES))
                demand(0 < plan.average_tokens <= plan.visual_tokens, f"{text!r} has a plan of {plan.average_tokens}")

    return trial


def _class_of(name: str) -> Any:
    from vitcop_core import methods

    return getattr(methods, METHODS[name])


def called(label: str) -> str:
    """The text of a label such as "ViTCoP, layers=(1, 6)"."""
    name, _, settings = label.partition(", ")
    return f"{name}({settings})"


def written(names: list[str], settings: list[str], random: Random) -> str:
    """One to three methods by the grammar; most are damaged afterwards, or hold values that do not fit."""
    parts = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        count = random.choice((0, 1, 1, 1, 2, 5))
        inner = ", ".join(f"{random.choice(settings)}={random.choice(VALUES)}" for _ in range(count))
        parts.append(random.choice(names) + (f"({inner})" if inner or random.random() < 0.3 else ""))
    text = ", ".join(parts) if random.random() < 0.6 else random.choice(GOOD)
    if random.random() < 0.5:
        text = mutated_text(text, random, (*names, *settings, *VALUES, *ODD_TEXTS))
    if random.random() < 0.02:
        text = random.choice("([{-~") * random.choice((90, 990, 5000)) + text
    return text
