"""The options that commands share, and what their values mean."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitcop_core.files import check_writable, write_bytes
from vitcop_llava.tools.cli.errors import UserError, cannot_write
from vitcop_llava.tools.model.budget import Budget
from vitcop_llava.tools.model.budget import parse_budget as budget_of

if TYPE_CHECKING:
    from PIL.Image import Image


Model = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|ID",
        help="A local folder, or a hub id such as llava-hf/llava-1.5-7b-hf. Default: the demo model.",
    ),
]
Retain = Annotated[
    str | None,
    typer.Option(
        metavar="N|N%|M/N|all",
        help="How many visual tokens of an image or clip to keep on average (64), which share of them (11.1%, 1/9), "
        "or all. Default: 1/9.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object on stdout, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", metavar="", help="Overwrite the output file.")]


def parse_budget(text: str | None) -> Budget:
    """Return the budget that ``--retain`` says; one ninth where it is not given.

    Raises:
        UserError: for anything but a positive number, a percentage up to 100, a fraction up to 1/1, or ``all``.
    """
    try:
        return budget_of(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def parse_budgets(given: Sequence[str] | None, default: Sequence[str]) -> dict[str, Budget]:
    """Return the budgets of repeated ``--retain``, each of which may be a list with commas, by what was written.

    Raises:
        UserError: for one that is none.
    """
    words = [word.strip() for text in given or () for word in text.split(",")]
    return {word: parse_budget(word) for word in words or default}


def check_output(path: Path, force: bool, *, kind: str = "PNG", apart_from: tuple[Path, ...] = ()) -> None:
    """Raise unless such a file can be written to ``path``: asked before the work, so that it is not in vain.

    Raises:
        UserError: where it is not such a file's name, its folder is missing, it is there already, or it is one of the
            inputs.
    """
    suffix = f".{kind.lower()}"
    if path.suffix.lower() != suffix:
        raise UserError(f"--out must be the name of a {kind} file ({suffix}), got {path}")
    if not path.parent.is_dir():
        raise UserError(f"--out must be in an existing folder, got {path}")
    if path.is_dir():
        raise UserError(f"--out must be a file, got the folder {path}")
    try:
        check_writable(path, overwrite=force)
    except OSError as error:
        raise cannot_write("--out", path, error) from error
    if path.exists() and any(path.samefile(other) for other in apart_from if other.exists()):
        raise UserError(f"--out must not be the input {path}")


def write_picture(picture: Image, path: Path, force: bool) -> None:
    """Write a picture as PNG; see `write_file`."""
    data = BytesIO()
    picture.save(data, "PNG", optimize=True)
    write_file(data.getvalue(), path, force)


def write_file(data: bytes, path: Path, force: bool) -> None:
    """Write a file whole; without ``force`` never over one, not even one that came since it was checked.

    Raises:
        UserError: where the file is there, or cannot be written under that name.
        OutputError: where it cannot be written otherwise.
    """
    try:
        write_bytes(path, data, overwrite=force)
    except OSError as error:
        raise cannot_write("--out", path, error) from error
