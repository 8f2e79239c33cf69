"""What ``--method`` says: names, or names with settings as in ``vitcop(layers=(1, 6))``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vitcop_core.parsing import METHODS, find_methods, method_names
from vitcop_llava.tools.cli.errors import UserError

if TYPE_CHECKING:
    from vitcop_core import Method
    from vitcop_llava.tools.model.budget import Budget

__all__ = ["METHODS", "MethodName", "method_names", "parse_method", "parse_methods"]

MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME[(SETTING=VALUE)]",
        help="vitcop, fastv, pyramiddrop, sparsevlm, visionzip, divprune, vispruner or earlyvitcop, with settings if "
        "you like: vitcop(layers=(1, 6)).",
    ),
]


def parse_method(text: str, budget: Budget) -> Method:
    """Return the one method that ``--method`` says, for a budget.

    Raises:
        UserError: for a method or setting that there is none of, several methods, or a value that does not fit.
    """
    found = parse_methods([text], budget)
    if len(found) != 1:
        raise UserError(f"--method must be one method, got {text!r:.80}")
    (method,) = found.values()
    return method


def parse_methods(given: Sequence[str], budget: Budget) -> dict[str, Method]:
    """Return the methods of repeated ``--method`` by label; several may stand in one, with commas between.

    Args:
        given: what was written.
        budget: of each.

    Raises:
        UserError: for a method or setting that there is none of, or a value that does not fit.
    """
    found: dict[str, Method] = {}
    for text in given:
        try:
            found.update(find_methods(text, **budget.settings, source="--retain"))
        except ValueError as error:
            raise UserError(
                f"--method {str(error).removeprefix('text ')}"
                if str(error).startswith("text ")
                else f"--method: {error}"
            ) from error
    return found
