"""Where things are printed: results to stdout, notes, progress and errors to stderr, and JSON alone with --json."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from vitcop_core.shown import shortened

_LONGEST_MESSAGE = 1500
"""Characters: the hundred names of a family's settings fit, and a question that came instead of one does not."""


class OutputError(Exception):
    """A result that could not be written or printed, through no fault of the caller."""


def printable(text: str) -> str:
    """Return ``text`` without control characters, which could move the cursor of a terminal or change its settings."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on a line of stdout.

    Raises:
        OutputError: stdout cannot be written to.
    """
    with _stdout():
        print(json.dumps(content, ensure_ascii=True, allow_nan=False))


def print_result(content: Table | str) -> None:
    """Print a table or a line of text on stdout.

    A pipe or a file gets lines as long as they are. A terminal that is narrower than a table gets it in parts.

    Raises:
        OutputError: stdout cannot be written to.
    """
    with _stdout():
        # A console is made when it is used: stdout may be another one by then than at import.
        console = Console()
        if isinstance(content, str):
            console.print(Text(printable(content)), soft_wrap=not console.is_terminal)
        elif console.is_terminal:
            if content.title:
                console.print(Text(str(content.title), "italic"))
            for part in _parts(content, console.width):
                console.print(part)
            if content.caption:
                console.print(Text(str(content.caption), "dim italic"))
        else:
            Console(width=_UNBOUNDED).print(content, crop=False)


@contextmanager
def _stdout() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()
        raise OutputError(f"stdout: cannot be written to: {error.strerror or error}") from error


def silence_stdout() -> None:
    """Let what is printed from now on go nowhere: Python itself flushes a broken stdout again when it ends."""
    with suppress(OSError, ValueError):  # in a test it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_note(text: str) -> None:
    """Print a remark on stderr."""
    Console(stderr=True).print(Text.assemble(("Note: ", "yellow"), printable(text)))


def one_line(text: str) -> str:
    """Return a message as one line of bounded length, whatever names and texts of others are in it."""
    return shortened(" ".join(text.split()), _LONGEST_MESSAGE)


def print_error(text: str) -> None:
    """Print an error on stderr, in one line."""
    _print_error(Console(stderr=True), text)


def _print_error(console: Console, text: str) -> None:
    console.print(Text.assemble(("Error: ", "bold red"), printable(one_line(text))), soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show a spinner on stderr while something runs, if stderr is a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(Text(printable(what))):
            yield
    else:
        yield


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g}/s", "cyan")


class Meter:
    """How far some work is, on stderr where that is a terminal: a bar, the rate and the time left.

    Args:
        total: How many things there are to do.
        done: How many of them an earlier run did.
    """

    def __init__(self, total: int, done: int) -> None:
        self._console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._task = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def advance(self, count: int) -> None:
        """Count what is done."""
        self._progress.advance(self._task, count)

    def print_error(self, text: str) -> None:
        """Print an error above the bar."""
        _print_error(self._console, text)


def make_table(headings: Iterable[str], title: str | None = None, caption: str | None = None) -> Table:
    """Return an empty table in the style of all commands: the first column says what, the others are values."""
    table = Table(box=SIMPLE_HEAD, title=title, caption=caption, title_justify="left", caption_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number == 0)
    return table


def add_row(table: Table, *cells: str, style: str | None = None) -> None:
    """Add a row of plain text: nothing in it is markup."""
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


_UNBOUNDED = 100_000
_SHORT, _LONGEST_WORD = 16, 40
"""Characters: a cell that stays on one line, such as a number with its unit; a word that is not broken."""
_BESIDE = 3
"""Characters around the text of a column."""


def _parts(table: Table, width: int) -> list[Table]:
    """Return the columns in as many tables as it takes for no cell to be torn apart, each with the first column.

    Args:
        table: of plain text.
        width: of the terminal.
    """
    least = [_least_width(column) for column in table.columns]
    groups: list[list[int]] = [[0]]
    for number in range(1, len(least)):
        if len(groups[-1]) > 1 and sum(least[each] + _BESIDE for each in (*groups[-1], number)) > width:
            groups.append([0])
        groups[-1].append(number)
    parts = []
    for group in groups:
        part = make_table(())
        for number in group:
            column = table.columns[number]
            part.add_column(column.header, overflow="fold", no_wrap=number == 0, min_width=least[number])
        rows = zip(*(table.columns[number].cells for number in group), strict=True)
        for cells, row in zip(rows, table.rows, strict=True):
            part.add_row(*cells, style=row.style)
        parts.append(part)
    return parts


def _least_width(column: Column) -> int:
    """Return the width at which a column breaks no word and no short cell; the first column has no line breaks."""
    least = 0
    for text in map(str, (column.header, *column.cells)):
        whole = column.no_wrap or cell_len(text) <= _SHORT
        least = max(least, *map(cell_len, [text] if whole else text.split()))
    return min(least, _LONGEST_WORD)
