"""``vitcop ask --batch``: many questions from a file of JSON lines, answered one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vitcop_llava.cli.errors import UserError
from vitcop_llava.cli.media import has_video
from vitcop_llava.cli.output import print_error, print_json, progress

MAX_LINE = 2**20
"""Bytes of a line: a question and some file names take a few hundred."""


@dataclass(frozen=True)
class Request:
    """A line of the file: ``key`` is its ``id``, None where it has none."""

    images: list[Path]
    question: str
    key: str | int | None


def run_batch(path: Path, out: Path | None, force: bool, answer: Callable[[Request], dict[str, Any]]) -> bool:
    """Answers every line; the results are JSON lines as well, on stdout or in ``out``, each written when it is there.

    A line that cannot be answered gets a result with ``error``, and a message on stderr; the others go on.

    Args:
        path: a file with one JSON object a line: ``image`` or ``images``, ``question``, and if wanted ``id``.
        out: where results go; None for stdout.
        force: write over ``out``.
        answer: gives the fields of a result.

    Returns:
        Whether every line was answered.

    Raises:
        UserError: where the file cannot be read, or ``out`` cannot be written.
    """
    failed = 0
    with ExitStack() as stack:
        lines = stack.enter_context(open_file(path, "--batch", "rb"))
        stream = None if out is None else stack.enter_context(_output(path, out, force))
        for number, line in numbered_lines(lines):
            result: dict[str, Any] = {"line": number}
            try:
                request = parse_request(line)
                result |= {} if request.key is None else {"id": request.key}
                result |= {"images": [str(image) for image in request.images], "question": request.question}
                with progress(f"line {number}"):
                    result |= answer(request)
            except Exception as error:  # whatever it is, it is this line's
                said = str(error) or type(error).__name__
                result["error"] = said
                print_error(f"{path}, line {number}: {said}")
                failed += 1
            if stream is None:
                print_json(result)
            else:
                stream.write(json.dumps(result, allow_nan=False).encode() + b"\n")
                stream.flush()
    return failed == 0


def check_batch(path: Path, out: Path | None, force: bool, images: Sequence[Path], question: str) -> None:
    """Raises for what would come out only after the model is loaded.

    Raises:
        UserError: where there is no such file, ``out`` is there, or a question is given beside it.
    """
    if images or question:
        raise UserError(
            f"--batch: the images and questions are in its file; got {str(question or images[0])!r} beside it"
        )
    if not path.is_file():
        raise UserError(f"--batch: must be a file of JSON lines; there is no file {path}")
    if out is not None and out.exists() and not force:
        raise UserError(f"--out: {out} is there already; --force overwrites it")


def names_video(path: Path) -> bool:
    """Whether a line asks about a video: then the demo model is that for videos."""
    with open_file(path, "--batch", "rb") as lines:
        for _, line in numbered_lines(lines):
            try:
                if has_video(parse_request(line).images):
                    return True
            except UserError:  # told when it is that line's turn
                continue
    return False


def parse_request(line: bytes) -> Request:
    """A line's images and question.

    Raises:
        UserError: where it is no JSON object with these.
    """
    if len(line) > MAX_LINE:
        raise UserError(f"must have at most {MAX_LINE} bytes, and has more")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"must be a JSON object: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f'must be a JSON object such as {{"image": "a.png", "question": "..."}}, got {content!r:.80}')
    if ("image" in content) == ("images" in content):
        raise UserError('must have either "image" or "images"')
    images = [content["image"]] if "image" in content else content["images"]
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise UserError(f'"image" must be a file name, "images" a list of them; got {images!r:.80}')
    question, key = content.get("question"), content.get("id")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f'"question" must be a text that is not empty; got {question!r:.80}')
    if isinstance(key, bool) or not isinstance(key, str | int | None):
        raise UserError(f'"id" must be a text or an integer; got {key!r:.80}')
    return Request([Path(image) for image in images], question, key)


def numbered_lines(lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; of an overlong one the beginning alone."""
    number = 0
    while line := lines.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = lines.readline(MAX_LINE)
        if line.strip():
            yield number, line


def open_file(path: Path, option: str, mode: str) -> IO[bytes]:
    """Opens a file for an option.

    Raises:
        UserError: where it is none, or cannot be opened.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{option}: must be a file, got {path}")
        stream: IO[bytes] = path.open(mode)
        return stream
    except FileExistsError as error:
        raise UserError(f"{option}: {path} is there already; --force overwrites it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: cannot open {path}: {getattr(error, 'strerror', None) or error}") from error


def _output(path: Path, out: Path, force: bool) -> IO[bytes]:
    if out.exists() and out.samefile(path):
        raise UserError(f"--out: must not be the file of --batch, {path}")
    return open_file(out, "--out", "wb" if force else "xb")
