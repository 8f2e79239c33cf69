"""What ``--method`` says: names, or names with settings as in ``vitcop(layers=(1, 6))``. Nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcop_llava.cli.errors import UserError, mistakes

if TYPE_CHECKING:
    from vitcop_core import Method
    from vitcop_llava.cli.options import Budget

METHODS = {
    "vitcop": "ViTCoP",
    "fastv": "FastV",
    "pyramiddrop": "PyramidDrop",
    "sparsevlm": "SparseVLM",
    "visionzip": "VisionZip",
}
"""Every method by the name that ``--method`` takes."""

MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME[(SETTING=VALUE)]",
        help="vitcop, fastv, pyramiddrop, sparsevlm or visionzip; with settings if wanted: vitcop(layers=(1, 6)).",
    ),
]

_BUDGET_SETTINGS = ("retained_tokens", "retention_ratio")


def find_method(text: str, budget: Budget) -> Method:
    """The one method that ``--method`` says, for a budget.

    Raises:
        UserError: for a method or setting that there is none of, several methods, or a value that does not fit.
    """
    found = parse_methods([text], budget)
    if len(found) != 1:
        raise UserError(f"--method: must be one method; got {text!r:.80}")
    (method,) = found.values()
    return method


def parse_methods(given: Sequence[str], budget: Budget) -> dict[str, Method]:
    """The methods of repeated ``--method`` by label; several may stand in one, with commas between.

    Args:
        given: what was written.
        budget: of each.

    Raises:
        UserError: for a method or setting that there is none of, or a value that does not fit.
    """
    return dict(_parse_method(node, text, budget) for text in given for node in _nodes(text))


def _nodes(text: str) -> list[ast.expr]:
    try:
        parsed = ast.parse(f"[{text}\n]", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _unreadable(text) from error
    if not isinstance(parsed, ast.List) or not parsed.elts:
        raise _unreadable(text)
    return parsed.elts


def _unreadable(text: str) -> UserError:
    return UserError(f"--method: must be a name, or a name with settings as in vitcop(layers=(1, 6)); got {text!r:.80}")


def _parse_method(node: ast.expr, text: str, budget: Budget) -> tuple[str, Method]:
    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name):
        raise _unreadable(text)
    if called.id.lower() not in METHODS:
        raise UserError(f"--method: must be one of {', '.join(METHODS)}; got {called.id!r}")
    name = METHODS[called.id.lower()]
    kind: type[Any] = getattr(import_module("vitcop_core"), name)
    settings = _settings(node, text, name, kind) if isinstance(node, ast.Call) else {}
    with mistakes("--method"):
        method = kind(**budget.settings, **settings)
    return ", ".join([name, *(f"{setting}={value!r}" for setting, value in settings.items())]), method


def _settings(node: ast.Call, text: str, name: str, kind: type[Any]) -> dict[str, Any]:
    known = [field.name for field in fields(kind) if field.name not in _BUDGET_SETTINGS]
    settings: dict[str, Any] = {}
    if node.args:
        raise _unreadable(text)
    for keyword in node.keywords:
        if keyword.arg in _BUDGET_SETTINGS:
            raise UserError(f"--method: the budget of {name} comes from --retain; got {keyword.arg} in {text!r:.80}")
        if keyword.arg not in known:
            raise UserError(f"--method: {name} has the settings {', '.join(known)}; got {keyword.arg!r}")
        try:
            settings[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise UserError(f"--method: {keyword.arg} must be a plain value; got {text!r:.80}") from error
    return settings
