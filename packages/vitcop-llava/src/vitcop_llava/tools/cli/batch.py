"""The questions of ``vitcop ask --batch``: a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vitcop_core.files import check_writable, open_regular
from vitcop_core.journal import partial_path
from vitcop_llava.tools.cli.errors import UserError, cannot_write
from vitcop_llava.tools.cli.media import has_video

MAX_LINE = 2**20
"""Bytes of a line: a question and some file names take a few hundred."""


@dataclass(frozen=True)
class Request:
    """A line of the file: ``key`` is its ``id``, None where it has none."""

    images: list[Path]
    question: str
    key: str | int | None


def check_batch(path: Path, out: Path | None, force: bool, resume: bool, images: Sequence[Path], question: str) -> None:
    """Raise for what would come out only after the model is loaded.

    Raises:
        UserError: where there is no such file, ``out`` cannot be written or is there, or a question is given beside it.
    """
    if images or question:
        raise UserError(
            f"--batch must be given alone, as its file holds images and questions, got {str(question or images[0])!r}"
        )
    if not path.is_file():
        raise UserError(f"--batch must be an existing file of JSON lines, got {path}")
    if out is None:
        if resume:
            raise UserError("--resume must be given with --out; what was printed cannot be gone on with")
        return
    if resume and force:
        raise UserError(
            "--resume must not be given with --force: one goes on with what is there, the other starts again"
        )
    if out.exists() and out.samefile(path):
        raise UserError(f"--out must not be the file of --batch, {path}")
    if not force and not resume and partial_path(out).exists():
        raise UserError(
            f"--out must not be what an interrupted run left, got {partial_path(out)}; --resume goes on with it, "
            "--force "
            "starts again"
        )
    try:
        check_writable(out, overwrite=force or resume)
    except OSError as error:
        raise cannot_write("--out", out, error) from error


def names_video(path: Path) -> bool:
    """Return whether a line asks about a video: then the demo model is that for videos."""
    with open_file(path, "--batch") as lines:
        for _, line in numbered_lines(lines):
            try:
                if has_video(parse_request(line).images):
                    return True
            except UserError:  # told when it is that line's turn
                continue
    return False


def parse_request(line: bytes) -> Request:
    """Return a line's images and question.

    Raises:
        UserError: where it is no JSON object with these.
    """
    if len(line) > MAX_LINE:
        raise UserError(f"line must have at most {MAX_LINE} bytes, got more")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"line must be a JSON object, got {error}") from error
    if not isinstance(content, dict):
        raise UserError(
            f'line must be a JSON object such as {{"image": "a.png", "question": "..."}}, got {content!r:.80}'
        )
    if ("image" in content) == ("images" in content):
        raise UserError(f'line must have either "image" or "images", got {"both" if "image" in content else "neither"}')
    images = [content["image"]] if "image" in content else content["images"]
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise UserError(f'"image" must be a file name, "images" a list of them, got {images!r:.80}')
    question, key = content.get("question"), content.get("id")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f'"question" must be a text that is not empty, got {question!r:.80}')
    if isinstance(key, bool) or not isinstance(key, str | int | None):
        raise UserError(f'"id" must be a text or an integer, got {key!r:.80}')
    return Request([Path(image) for image in images], question, key)


def numbered_lines(lines: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1; of an overlong one the beginning alone."""
    number = 0
    while line := lines.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = lines.readline(MAX_LINE)
        if line.strip():
            yield number, line


def open_file(path: Path, option: str) -> BinaryIO:
    """Open a file that an option names, to read it.

    Raises:
        UserError: where it is none, or cannot be opened.
    """
    try:
        return open_regular(path)
    except OSError as error:
        raise UserError(f"{option} must be a file that can be read, got {path}: {error.strerror or error}") from error
