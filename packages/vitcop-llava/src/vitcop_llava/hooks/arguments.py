"""What a function is called with, by name: callers may give arguments by place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from vitcop_llava.compat import named_cache

Kwargs = dict[str, Any]

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_known: WeakKeyDictionary[Callable[..., Any], tuple[str, ...]] = WeakKeyDictionary()


def names_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments that a function, or a method of an object, may be given by place."""
    plain = getattr(function, "__func__", function)
    if plain not in _known:
        parameters = inspect.signature(plain).parameters.values()
        _known[plain] = tuple(each.name for each in parameters if each.kind in _BY_PLACE)
    return _known[plain] if plain is function else _known[plain][1:]


def tokens_of(given: Kwargs) -> Any:
    """Return what a call's tokens come in, ``input_ids`` or ``inputs_embeds``; None where it has neither."""
    ids = given.get("input_ids")
    return given.get("inputs_embeds") if ids is None else ids


def by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: Kwargs) -> Kwargs:
    """Return all arguments of a call by name.

    Args:
        names: Of those that may come by place; see `names_of`.
        args: Those that do.
        kwargs: The others.

    Raises:
        TypeError: There are too many, or one comes twice.
    """
    if not args:
        return named_cache(kwargs)
    given = dict(zip(names, args, strict=False))
    twice = [name for name in given if name in kwargs]
    if twice or len(args) > len(names):
        more = f", and {', '.join(twice)} once more by name" if twice else ""
        raise TypeError(f"model must be given each argument once, got {len(args)} by place, of {len(names)}{more}")
    return named_cache({**given, **kwargs})
