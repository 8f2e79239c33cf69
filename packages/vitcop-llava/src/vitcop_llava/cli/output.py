"""Where things are printed: results to stdout, notes, progress and errors to stderr, and JSON alone with --json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """``text`` without control characters, which could move the cursor of a terminal or change its settings."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on a line of stdout."""
    print(json.dumps(content, ensure_ascii=True, allow_nan=False))


def print_result(content: Table | str) -> None:
    """A table or a line of text on stdout."""
    # A console is made when it is used: stdout may be another one by then than at import.
    Console().print(Text(printable(content)) if isinstance(content, str) else content)


def print_note(text: str) -> None:
    """A remark on stderr."""
    Console(stderr=True).print(Text.assemble(("Note: ", "yellow"), printable(text)))


def print_error(text: str) -> None:
    """An error on stderr."""
    Console(stderr=True).print(Text.assemble(("Error: ", "bold red"), printable(text)), soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """A spinner on stderr while something runs; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(Text(printable(what))):
            yield
    else:
        yield


def make_table(headings: Iterable[str], title: str | None = None, caption: str | None = None) -> Table:
    """An empty table in the style of all commands: the first column says what, the others are values."""
    table = Table(box=SIMPLE_HEAD, title=title, caption=caption, title_justify="left", caption_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number == 0)
    return table


def add_row(table: Table, *cells: str, style: str | None = None) -> None:
    """A row of plain text: nothing in it is markup."""
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)
