"""The former place of `vitcop_llava.tools.analysis`, whose names it has for one more release."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

_PLACE = "vitcop_llava.tools.analysis"

warnings.warn(f"{__name__} will go: import {_PLACE}", DeprecationWarning, stacklevel=2)


def __getattr__(name: str) -> Any:
    return getattr(import_module(_PLACE), name)
