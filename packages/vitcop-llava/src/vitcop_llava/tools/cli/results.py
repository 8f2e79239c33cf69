"""The results of ``vitcop ask --batch`` and ``vitcop batch``: JSON lines that a kill leaves whole, to go on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from vitcop_core.journal import Journal, lines_of, partial_path
from vitcop_llava.tools.cli.errors import UserError, cannot_write
from vitcop_llava.tools.cli.output import print_error, print_json, print_note, progress
from vitcop_llava.tools.cli.requests import QuestionFile, Questions, Request, fields_of

MAX_RESULTS = 4 * 2**30
"""Bytes of all results."""


def answer_batch(
    path: Path, out: Path | None, resume: bool, run: Mapping[str, Any], answer: Callable[[Request], dict[str, Any]]
) -> bool:
    """Answer every line; the results are JSON lines as well, each written when it is there.

    A line that cannot be answered gets a result with ``error``, and a message on stderr; the others go on.

    Args:
        path: a file with one JSON object a line: ``image`` or ``images``, ``question``, and if wanted ``id``.
        out: where results go; None for stdout.
        resume: keep what an interrupted run wrote to ``out``.
        run: what identifies the run, as JSON.
        answer: gives the fields of a result.

    Returns:
        Whether every line was answered.

    Raises:
        UserError: where the file cannot be read, or what was written belongs to another run.
        UserError, OutputError: where a result cannot be written.
    """
    asked = QuestionFile(path, "--batch")
    done = results_of(asked, out, run) if out is not None and resume else {}
    with Output(out, run, done) as output:
        try:
            failed = _answer_lines(asked, output, done, answer)
        except KeyboardInterrupt:
            if out is not None:
                print_note(interrupted(out))
            raise
        output.finish()
    return failed == 0


def interrupted(out: Path) -> str:
    """Return what to say where a run is interrupted."""
    return f"what was answered is in {partial_path(out)}; the same command with --resume goes on"


def _answer_lines(
    questions: Questions, output: Output, done: Mapping[int, Any], answer: Callable[[Request], dict[str, Any]]
) -> int:
    """Answer the lines that have no result yet; return how many failed."""
    failed = 0
    for number, line in questions.lines():
        if number in done:
            continue
        result: dict[str, Any] = {"line": number}
        try:
            request = questions.parse(line)
            result |= fields_of(request)
            with progress(f"line {number}"):
                result |= answer(request)
        except Exception as error:  # whatever it is, it is this line's
            said = str(error) or type(error).__name__
            result["error"] = said
            print_error(f"{questions.path}, line {number}: {said}")
            failed += 1
        output.add(result)
    return failed


class Output:
    """Where the results of a batch go: stdout, or a file that is whole when it is there.

    Until every line has a result, the results are in ``FILE.partial``, after a line that says what run they are of.

    Args:
        out: the file; None for stdout.
        run: what identifies the run, as JSON.
        done: results of an interrupted run that stay.

    Raises:
        UserError, OutputError: where the file cannot be written.
    """

    def __init__(self, out: Path | None, run: Mapping[str, Any], done: Mapping[int, Any]) -> None:
        self._out = out
        with self._told():
            self._journal = None if out is None else Journal(out, [dict(run), *done.values()])

    def add(self, *results: dict[str, Any]) -> None:
        """Write results; they last when this returns."""
        if self._journal is None:
            for result in results:
                print_json(result)
            return
        with self._told():
            self._journal.add(*results)

    def finish(self) -> None:
        """Give the file its name: every line has its result, in order."""
        if self._journal is not None:
            with self._told():
                _, *results = lines_of(self._journal.partial, MAX_RESULTS)
                self._journal.finish(sorted(results, key=lambda result: result["line"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._journal is not None:
            self._journal.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            assert self._out is not None  # stdout has errors of its own
            raise cannot_write("--out", self._out, error) from error


def results_of(questions: Questions, out: Path, run: Mapping[str, Any]) -> dict[int, Any]:
    """Return the results that an interrupted run left, by line; lines that failed are asked again.

    Args:
        questions: what is asked.
        out: where results go.
        run: what identifies the run.

    Raises:
        UserError: where they are of other settings or questions, or cannot be read.
    """
    partial = partial_path(out)
    if not partial.exists():
        if out.exists():
            raise UserError(
                f"--resume must go on with an interrupted run, got {out}, which is whole; --force starts again"
            )
        return {}
    try:
        header, *results = lines_of(partial, MAX_RESULTS) or [None]
    except OSError as error:
        raise UserError(
            f"--resume must find a file that can be read, got {partial}: {error.strerror or error}"
        ) from error
    if header is None:  # the run ended before its first line was written
        return {}
    if header != json.loads(json.dumps(run)):
        raise UserError(
            f"--resume must go on with the same options and versions, got {partial} of another run; --force starts "
            "again"
        )
    good = {result["line"]: result for result in results if _is_answer(result)}
    unseen = set(good)
    for number, line in questions.lines():
        unseen.discard(number)
        if number in good and not _is_result_of(good[number], questions, line):
            unseen.add(number)
            break
    if unseen:
        raise UserError(
            f"--resume must go on with the same questions, got a change in line {min(unseen)} of {questions.path}; "
            "--force starts again"
        )
    return good


def _is_answer(result: Any) -> bool:
    """Return whether a line of a journal is a result that stays: whoever had the file may have changed it."""
    return isinstance(result, dict) and type(result.get("line")) is int and isinstance(result.get("answer"), str)


def _is_result_of(result: Mapping[str, Any], questions: Questions, line: bytes) -> bool:
    try:
        asked = fields_of(questions.parse(line))
    except UserError:
        return False
    return all(result.get(name) == asked.get(name) for name in ("id", "images", "question"))
