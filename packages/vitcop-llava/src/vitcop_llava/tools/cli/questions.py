"""Question files: JSON lines with images, a question, and the answers that count as right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcop_llava.tools.cli.errors import UserError
from vitcop_llava.tools.cli.requests import numbered_lines, open_file, parse_request

if TYPE_CHECKING:
    from vitcop_llava.tools.comparison.questions import Fault, Item, QuestionSet


def read_questions(path: Path, limit: int | None) -> QuestionSet:
    """Return the questions of a file; lines that are none become faults.

    Args:
        path: a file with one JSON object a line: ``image`` or ``images``, ``question``, ``answer`` or ``answers``, and
            if wanted ``id`` and ``kind``.
        limit: questions to take, from the beginning; None for all.

    Raises:
        UserError: where the file cannot be read, or has no good line.
    """
    open_file(path, "--questions").close()  # a missing one is told of before torch is imported
    from vitcop_llava.tools.comparison.questions import Fault, QuestionSet

    items, faults = list["Item"](), list[Fault]()
    for read in parsed_lines(path):
        if limit is not None and len(items) == limit:
            break
        if isinstance(read, Fault):
            faults.append(read)
        else:
            items.append(read)
    if not items:
        first = f"; line {faults[0].number}: {faults[0].error}" if faults else ""
        raise UserError(f"--questions {path} must hold at least one question that can be asked, got none{first}")
    return QuestionSet(str(path), tuple(items), tuple(faults))


def parsed_lines(path: Path) -> Iterator[Item | Fault]:
    """Yield the question of each line of ``--questions`` that is not blank, or what is wrong with it.

    Raises:
        UserError: where the file cannot be read.
    """
    from vitcop_llava.tools.comparison.questions import Fault

    with open_file(path, "--questions") as lines:
        for number, line in numbered_lines(lines):
            try:
                yield parse_question(line, number)
            except UserError as error:
                yield Fault(number, str(error))


def parse_question(line: bytes, number: int) -> Item:
    """Return a line's question.

    Raises:
        UserError: where a field is missing or of the wrong kind.
    """
    from vitcop_llava.tools.comparison.questions import Item

    request = parse_request(line)
    content: dict[str, Any] = json.loads(line)
    if ("answer" in content) == ("answers" in content):
        raise UserError(
            f'line must have either "answer" or "answers", got {"both" if "answer" in content else "neither"}'
        )
    answers = [content["answer"]] if "answer" in content else content["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise UserError(f'"answer" must be a text that is not empty, "answers" a list of them, got {answers!r:.80}')
    kind = content.get("kind")
    if not isinstance(kind, str | None):
        raise UserError(f'"kind" must be a text, got {kind!r:.80}')
    return Item(number, request.question, tuple(answers), tuple(request.images), None, kind, request.key)
