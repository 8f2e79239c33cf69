"""The command line inside of this process: what it printed, how it ended, and what must hold of both."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from ordeal.trials import LONGEST_MESSAGE, demand
from vitcop_llava.tools.cli import app

PARSER = ("Usage:", "\N{BOX DRAWINGS LIGHT HORIZONTAL} Error \N{BOX DRAWINGS LIGHT HORIZONTAL}")
"""Of these, one is in what the parser of arguments says."""

HINT = "(--debug shows where)"
"""Ends the message of an error that nobody expected."""


@dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code, and what it printed."""

    code: int
    out: str
    said: str


class Console:
    """Runs commands.

    Args:
        expects_failures: whether an error that nobody expected is one: a checkpoint's own may be.
    """

    def __init__(self, *, expects_failures: bool = False) -> None:
        self._expects_failures = expects_failures

    def run(self, words: list[str]) -> Ended:
        """Runs a command; `FaultError` where it did not end as docs/cli.md says."""
        out, said, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            try:
                app(words)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 0 if error.code is None else 99
        ended = Ended(code, out.getvalue(), said.getvalue())
        self._check(words, ended)
        return ended

    def _check(self, words: list[str], ended: Ended) -> None:
        about = f"{' '.join(words)!r:.300} ended with {ended.code}: {ended.said[-300:]!r}"
        demand(ended.code in (0, 1, 2), about)
        if "--debug" not in words:
            demand("Traceback (most recent" not in ended.said + ended.out, f"a traceback; {about}")
        as_json = asks_for_json(words)
        if as_json and "--help" not in words and "--version" not in words:
            for line in ended.out.splitlines():  # one, but of a batch
                demand(isinstance(json.loads(line), dict), f"not a JSON object a line; {about}")
        if ended.code == 0:
            return
        if (as_json and ended.out) or '"error": ' in ended.out:
            error = str(json.loads(ended.out.splitlines()[-1]).get("error", ""))
        else:
            # Where it is wanted, a traceback comes first.
            split = ended.said.rpartition if "--debug" in words else ended.said.partition
            _, found, error = split("Error: ")
            # Where arguments cannot be parsed, it is the parser that says so, in lines of its own; without any, that is
            # the help.
            demand(
                bool(found) or any(mark in ended.said for mark in PARSER) or "Usage:" in ended.out,
                f"no message; {about}",
            )
            # A run that goes on tells of each line that cannot be answered. Notes come last, and are folded.
            error, _, _ = error.partition("\nNote: ")
            error = max(error.split("\nError: "), key=lambda each: each.count("\n")).strip()
        demand("\n" not in error or any(mark in ended.said for mark in PARSER), f"a message of several lines; {about}")
        demand(len(error) < LONGEST_MESSAGE, f"a message of {len(error):,} characters; {about}")
        if not self._expects_failures:
            demand(ended.code != 1 or HINT not in ended.said, f"an error that nobody expected; {about}")


def asks_for_json(words: list[str]) -> bool:
    """Whether JSON is asked for; "--json" may also stand where a value is due, or after all options."""
    options = words[: words.index("--")] if "--" in words else words
    places = [place for place, word in enumerate(options) if word == "--json"]
    return any(place == 0 or not options[place - 1].startswith("-") for place in places)


def with_one_model(folder: Path) -> None:
    """Lets all commands of this process share one loaded model, whatever folder they name."""
    from vitcop_llava.tools.model import loading

    loaded = loading.load(str(folder), device="cpu")
    loading.load = lambda source=None, **_: loaded
