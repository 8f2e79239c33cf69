"""Carries what Stage I kept along with an encoder's output, as one more of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from functools import cache
from typing import Any

from vitcop_llava.hooks.state import EncodedImages

_FIELD = "vitcop_encoded"


def encoded_of(output: object) -> EncodedImages | None:
    """Return what Stage I left on an encoder's output, or None where it never saw it."""
    found = output.get(_FIELD) if isinstance(output, Mapping) else None
    return found if isinstance(found, EncodedImages) else None


@cache
def _carrier(kind: type) -> type:
    """Return an output class like ``kind`` with one more field, which is passed on by whoever rebuilds an output."""
    return make_dataclass(kind.__name__, [(_FIELD, Any, field(default=None))], bases=(kind,))


def with_encoded(output: Any, encoded: EncodedImages) -> Any:
    """Return an encoder's output with what Stage I left on it."""
    kind: Any = type(output)
    found = _carrier(kind)(**output, **{_FIELD: encoded})
    for name, value in vars(output).items():  # what was put on it without being one of its fields
        if not hasattr(found, name):
            setattr(found, name, value)
    return found
