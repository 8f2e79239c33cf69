"""The options that commands share, and what their values mean."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitcop_core.files import check_writable, write_bytes
from vitcop_core.journal import partial_path
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
ForceResults = Annotated[
    bool, typer.Option("--force", metavar="", help="Overwrite what an earlier run left in the folder.")
]
Resume = Annotated[
    bool,
    typer.Option("--resume", metavar="", help="Continue an interrupted run of the same options, if there is one."),
]


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


def check_results_folder(out: Path, names: Sequence[str], journal: str, force: bool, resume: bool) -> None:
    """Make the folder of a run's results, or raise where they cannot go there: asked before the work.

    Args:
        out: The folder.
        names: Of the files that it gets.
        journal: That of them which grows while the work goes on.
        force: Whether what is there may be overwritten.
        resume: Whether the run goes on with it.

    Raises:
        UserError: where it is a file, cannot be made, or holds results that are neither continued nor overwritten.
    """
    if resume and force:
        raise UserError(
            "--resume must not be given with --force: one goes on with what is there, the other overwrites it"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder, got the file {out}")
    there = [name for name in (*names, partial_path(journal).name) if (out / name).exists()]
    if there and not force and not resume:
        raise UserError(
            f"--out must not hold results yet, got {out / there[0]}; --force overwrites it, --resume goes on with it"
        )
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--out must be a folder that can be made, got {out}: {error.strerror or error}") from error


def command_line(context: typer.Context) -> str:
    """Return the command line of a run, without what changes no number."""
    words = ["vitcop", context.info_name or ""]
    for option in context.command.params:
        name = option.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in ("out", "force", "resume", "as_json", "debug"):
            continue
        value = context.params[name]
        for each in value if isinstance(value, list) else [value]:
            words += [option.opts[0], str(each)]
    return shlex.join(words)


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
