"""The ``vitcop`` command: one module a command, each importing torch and transformers only when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from vitcop_llava.tools.cli.analyze import analyze
from vitcop_llava.tools.cli.ask import ask
from vitcop_llava.tools.cli.batch import batch
from vitcop_llava.tools.cli.bench import bench
from vitcop_llava.tools.cli.compare import compare
from vitcop_llava.tools.cli.doctor import doctor
from vitcop_llava.tools.cli.errors import CommandGroup
from vitcop_llava.tools.cli.eval import evaluate
from vitcop_llava.tools.cli.scene import scene
from vitcop_llava.tools.cli.show import show

app = typer.Typer(
    name="vitcop",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Prune the visual tokens of LLaVA and Qwen-VL models. Without --model, commands run the demo model of the "
    "package.",
)


def _help(command: Callable[..., None]) -> str:
    """Return the docstring without the line ends inside its paragraphs, which typer would print where they are."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for command in (ask, batch, show, compare, analyze, bench, scene, doctor):
    app.command(help=_help(command))(command)
app.command("eval", help=_help(evaluate))(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitcop {version('vitcop-llava')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command line of this process."""
    app()
