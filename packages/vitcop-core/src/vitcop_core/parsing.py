"""Methods as text: names, or names with settings as in ``vitcop(layers=(1, 6))``. Nothing is evaluated.

Other packages offer methods by entry points of the group ``vitcop.methods``. Torch is imported when a method is made,
and not before.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import fields, is_dataclass
from fractions import Fraction
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from vitcop_core.shown import shown, shown_with_type

if TYPE_CHECKING:
    from vitcop_core.methods import Method

#: The group of entry points under which an installed package offers methods: name in lower case to class.
ENTRY_POINTS = "vitcop.methods"

#: Every method of this package by its name in text, which is read without regard to case.
METHODS = {
    "vitcop": "ViTCoP",
    "fastv": "FastV",
    "pyramiddrop": "PyramidDrop",
    "sparsevlm": "SparseVLM",
    "visionzip": "VisionZip",
    "divprune": "DivPrune",
    "vispruner": "VisPruner",
    "earlyvitcop": "EarlyViTCoP",
}

#: The longest text that is read: what nests deeper could exhaust the parser's stack.
MAX_LENGTH = 1000

_BUDGETS = ("retained_tokens", "retention_ratio")

_REGISTERED: dict[str, type[Any]] = {}


def register_method(name: str, kind: Any) -> None:
    """Give a method a name by hand, for code that is in no installed distribution.

    Args:
        name: In text; read without regard to case.
        kind: A dataclass that derives from :class:`~vitcop_core.methods.Method`.

    Raises:
        TypeError: ``kind`` is not one.
        ValueError: ``name`` is no Python name, or that of a method of this package.
    """
    from vitcop_core.methods import Method

    if not isinstance(kind, type) or not issubclass(kind, Method) or not is_dataclass(kind):
        raise TypeError(f"kind must be a dataclass that derives from Method, got {shown_with_type(kind)}")
    if not str(name).isidentifier() or name.lower() in METHODS:
        raise ValueError(f"name must be a Python name other than {', '.join(METHODS)}, got {shown(name)}")
    _REGISTERED[name.lower()] = kind


def method_names() -> tuple[str, ...]:
    """Return the names of all methods: those of this package, then registered ones and those of installed packages."""
    others = {*_REGISTERED, *(entry.name.lower() for entry in entry_points(group=ENTRY_POINTS))}
    return (*METHODS, *sorted(others - {*METHODS}))


def _find_class(name: str) -> type[Any] | None:
    """Return the class of a method by its name in lower case."""
    if name in METHODS:
        found: type[Any] = getattr(import_module("vitcop_core.methods"), METHODS[name])
        return found
    if name not in _REGISTERED:
        for entry in entry_points(group=ENTRY_POINTS):
            if entry.name.lower() == name:
                register_method(name, entry.load())
    return _REGISTERED.get(name)


def find_method(
    text: str,
    *,
    retained_tokens: int | float | Fraction | None = None,
    retention_ratio: int | float | Fraction | None = None,
) -> Method:
    """Return the method that a text names, with the settings that it gives.

    >>> from vitcop_core import find_method
    >>> find_method("vitcop(layers=(1, 6))", retained_tokens=64).layers
    (1, 6)

    Args:
        text: A name (``vitcop``, ``fastv``, ``pyramiddrop``, ``sparsevlm``, ``visionzip``, ``divprune``,
            ``vispruner``, or one that another package offers), with settings in brackets if wanted. Their values are
            plain: numbers, texts, tuples, True, False and None.
        retained_tokens: The budget in tokens an image.
        retention_ratio: Or as a share. Without either the settings have to say what is kept.

    Raises:
        TypeError: ``text`` is not a text.
        ValueError: It cannot be read, is longer than 1,000 characters, names several methods or none that there is, or
            a setting or a budget does not fit; the message says which.
    """
    found = find_methods(text, retained_tokens=retained_tokens, retention_ratio=retention_ratio)
    if len(found) != 1:
        raise ValueError(f"text must be one method, got {shown(text)}")
    return found[0][1]


def find_methods(
    text: str,
    *,
    retained_tokens: int | float | Fraction | None = None,
    retention_ratio: int | float | Fraction | None = None,
    source: str = "the arguments",
) -> list[tuple[str, Method]]:
    """Return the methods of a text with commas between, each with a label: its name, and the settings that were given.

    Args:
        text: As for :func:`find_method`, like all that follows.
        retained_tokens: The budget of each.
        retention_ratio: Likewise.
        source: Where a budget comes from, for the message of an error.

    Raises:
        TypeError: ``text`` is not a text.
        ValueError: It cannot be read, or a method, a setting or a budget does not fit.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a text such as 'vitcop(layers=(1, 6))', got {shown_with_type(text)}")
    given = {"retained_tokens": retained_tokens, "retention_ratio": retention_ratio}
    budget = {name: value for name, value in given.items() if value is not None}
    return [_method(node, text, budget, source) for node in _nodes(text)]


def _nodes(text: str) -> list[ast.expr]:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"text must be at most {MAX_LENGTH} characters long, got {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a text that is refused, or means what it says
            parsed = ast.parse(f"[{text}\n]", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _unreadable(text) from error
    if not isinstance(parsed, ast.List) or not parsed.elts:
        raise _unreadable(text)
    return parsed.elts


def _unreadable(text: str) -> ValueError:
    return ValueError(f"text must be a name, or a name with settings as in vitcop(layers=(1, 6)), got {shown(text)}")


def _method(node: ast.expr, text: str, budget: dict[str, Any], source: str) -> tuple[str, Method]:
    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name):
        raise _unreadable(text)
    kind = _find_class(called.id.lower())
    if kind is None:
        raise ValueError(f"text must be one of {', '.join(method_names())}, got {shown(called.id)}")
    settings = _settings(node, text, kind, source if budget else None) if isinstance(node, ast.Call) else {}
    try:
        method = kind(**budget, **settings)
    except TypeError as error:  # of a setting, and so of the text
        raise ValueError(str(error)) from error
    return ", ".join([kind.__name__, *(f"{setting}={shown(value)}" for setting, value in settings.items())]), method


def _settings(node: ast.Call, text: str, kind: type[Any], source: str | None) -> dict[str, Any]:
    name, known = kind.__name__, [field.name for field in fields(kind) if not source or field.name not in _BUDGETS]
    settings: dict[str, Any] = {}
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise _unreadable(text)
    for keyword in node.keywords:
        setting = keyword.arg or ""
        if source and setting in _BUDGETS:
            raise ValueError(f"{setting} must be left out, as the budget of {name} comes from {source}")
        if setting not in known:
            raise ValueError(f"setting must be one of {', '.join(known)} for {name}, got {shown(setting)}")
        if setting in settings:
            raise ValueError(f"{setting} must be given once, got it again in {shown(text)}")
        try:
            settings[setting] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            value = shown(ast.get_source_segment(f"[{text}\n]", keyword.value) or text)
            raise ValueError(
                f"{setting} must be a plain value such as 6, 0.5, 'auto' or (1, 6), got {value}"
            ) from error
    return settings
