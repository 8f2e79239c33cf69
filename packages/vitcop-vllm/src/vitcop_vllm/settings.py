"""From the settings of an engine or a request, which are JSON, to a method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypedDict

from vitcop_core import Method, find_method
from vitcop_core.shown import shown

KEY = "vitcop"
"""The entry in ``hf_overrides`` and in ``mm_processor_kwargs``."""


class Settings(TypedDict, total=False):
    """What the entry holds: a method, and at most one of the budgets.

    Attributes:
        method: As `vitcop_core.find_method` reads it: ``"earlyvitcop"``, ``"visionzip"``.
        retained_tokens: Tokens of an image, or of an image in tiles as published for LLaVA-NeXT.
        retention_ratio: A share of all visual tokens, above 0 and at most 1.
    """

    method: str
    retained_tokens: int
    retention_ratio: float


_BUDGETS = [name for name in Settings.__annotations__ if name != "method"]


def as_text(settings: object) -> str:
    """Return settings as text that is the same for the same settings, after checking their form.

    Args:
        settings: Those of `Settings`.

    Raises:
        ValueError: They are of another form.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"vitcop must be settings such as {{'method': 'earlyvitcop'}}, got {shown(settings)}")
    unknown = sorted(str(name) for name in settings if name not in Settings.__annotations__)
    if unknown:
        raise ValueError(f"vitcop must have method, retained_tokens or retention_ratio, got {', '.join(unknown)[:200]}")
    if not isinstance(settings.get("method"), str):
        raise ValueError(f"vitcop must name a method as text, got {shown(settings.get('method'))}")
    try:
        return json.dumps(dict(settings), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"vitcop must be plain JSON, got {shown(dict(settings))}") from error


@lru_cache(256)
def method_of(text: str) -> Method:
    """Return the method that settings name; see `as_text`.

    Raises:
        ValueError: There is no such method, or a setting does not fit.
    """
    given: dict[str, Any] = json.loads(text)
    budget = {name: given[name] for name in _BUDGETS if given.get(name) is not None}
    try:
        return find_method(given["method"], **budget)
    except TypeError as error:
        raise ValueError(f"vitcop: {error}") from error
