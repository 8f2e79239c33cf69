"""What is compared: methods at budgets, and the named sets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, cast

from vitcop_core import Method, ViTCoP, presets
from vitcop_llava.families import Parts
from vitcop_llava.pruner import prune
from vitcop_llava.tools.comparison import PRESETS

Budgets = Mapping[str, Mapping[str, Any]]
"""By what the user wrote, the setting that it is: ``retained_tokens`` or ``retention_ratio``."""

_PUBLISHED_TOKENS = 576


@dataclass(frozen=True)
class Variant:
    """A method at a budget.

    Attributes:
        label: What it is called at any budget.
        retain: The budget as it was asked for.
        method: Its settings; None for the unpruned model.
    """

    label: str
    retain: str
    method: Method | None

    @property
    def name(self) -> str:
        """What it is called among others."""
        return self.label if self.method is None else f"{self.label}, {self.retain}"

    @property
    def settings(self) -> str | None:
        """The method with the settings that are not its defaults; None for the unpruned model."""
        if self.method is None:
            return None
        method: Any = self.method
        values = ((field, getattr(method, field.name)) for field in fields(method))
        shown = ", ".join(f"{field.name}={value!r}" for field, value in values if value != field.default)
        return f"{type(method).__name__}({shown})"


UNPRUNED = Variant("unpruned", "all", None)


def at_budgets(templates: Mapping[str, Method], budgets: Budgets) -> list[Variant]:
    """Return every method at every budget.

    Args:
        templates: Methods by label; their own budget is replaced.
        budgets: The budgets.

    Raises:
        ValueError: A budget is out of range.
    """
    none = {"retained_tokens": None, "retention_ratio": None}
    return [
        Variant(label, retain, cast("Method", replace(cast("Any", template), **none | dict(budget))))
        for label, template in templates.items()
        for retain, budget in budgets.items()
    ]


def equal_budget_variants() -> dict[str, Method]:
    """Return the seven methods by name."""
    return dict(reversed(presets.equal_budgets(1).items()))


def preset(name: str, parts: Parts, budgets: Budgets) -> list[Variant]:
    """Return the variants of a named set.

    Args:
        name: One of `PRESETS`.
        parts: The model.
        budgets: At which; ``published`` brings its own.

    Raises:
        ValueError: There is no such set, a budget is out of range, or the set does not fit the model.
    """
    layers = parts.shape.num_layers
    if name == "equal-budgets":
        return at_budgets(equal_budget_variants(), budgets)
    if name == "table-4":
        return at_budgets(presets.table_4(1), budgets)
    if name == "table-7":
        return at_budgets({_layers(pair): m for pair, m in presets.table_7(1, num_layers=layers).items()}, budgets)
    if name == "published":
        return _published(parts)
    raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")


def _layers(pair: tuple[int, int]) -> str:
    return f"layers {pair[0]} and {pair[1]}"


def _published(parts: Parts) -> list[Variant]:
    tokens, name = parts.visual_tokens, "published"
    if parts.anyres is not None or parts.squares is not None or tokens != _PUBLISHED_TOKENS:
        many = f"{'' if parts.anyres is None else 'up to '}{tokens}" if parts.squares is None else "as many as it shows"
        raise ValueError(
            f"preset {name} must be used with a model of {_PUBLISHED_TOKENS} visual tokens an image, as LLaVA-1.5 has, "
            f"got {many}"
        )
    found: dict[str, Mapping[int, Method]] = {
        "ViTCoP": {budget: ViTCoP(retained_tokens=budget) for budget in presets.BUDGETS},
        "VisionZip": presets.VISIONZIP,
        "SparseVLM": presets.SPARSEVLM,
        "PyramidDrop": presets.PYRAMIDDROP,
        "FastV": presets.FASTV,
    }
    return [Variant(name, str(budget), method) for name, each in found.items() for budget, method in each.items()]


def find_problem(variant: Variant, model: Any) -> str | None:
    """Return why a variant cannot run on a model, known before anything is asked; None where it can."""
    if variant.method is None:
        return None
    try:
        prune(model, variant.method).remove()
    except ValueError as error:
        return str(error)
    return None


def nearest_tokens(variant: Variant, num_layers: int, layouts: Sequence[Sequence[int]]) -> int | None:
    """Return the whole number of tokens nearest to a budget that the method can meet.

    Args:
        variant: The method with its budget.
        num_layers: Layers of the language model.
        layouts: The visual tokens of images or clips, unit by unit. A share is one of the first that the budget cannot
            be met for.

    Returns:
        Tokens that can be met for all of them. None where the budget itself can be met, where nothing can, or where the
        variant's settings are no budget.
    """
    method: Any = variant.method
    budget, ratio = getattr(method, "retained_tokens", None), getattr(method, "retention_ratio", None)
    if budget is None and ratio is None:
        return None

    def fits(candidate: Method, units: Sequence[int]) -> bool:
        try:
            candidate.plan(num_layers, units)
        except ValueError:
            return False
        return True

    units = next((units for units in layouts if not fits(method, units)), None)
    if units is None:
        return None
    asked = Fraction(ratio or 0) * sum(units) if budget is None else Fraction(budget)
    for tokens in sorted(range(1, sum(units)), key=lambda tokens: abs(tokens - asked)):
        candidate = replace(method, retained_tokens=tokens, retention_ratio=None)
        if all(fits(candidate, each) for each in (units, *layouts)):
            return tokens
    return None
