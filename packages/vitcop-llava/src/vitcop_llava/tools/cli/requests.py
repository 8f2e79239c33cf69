"""The questions of ``vitcop ask --batch`` and ``vitcop batch``: a file of JSON lines, or a folder of images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from vitcop_core.files import check_writable, open_regular
from vitcop_core.journal import partial_path
from vitcop_llava.tools.cli.errors import UserError, cannot_write
from vitcop_llava.tools.cli.media import has_video

IMAGE_SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .png .webp".split())
"""Of the files of a folder that are read as images."""

_BEGINNING = 2**12
"""Bytes that tell whether a file is text."""

MAX_LINE = 2**20
"""Bytes of a line: a question and some file names take a few hundred."""


@dataclass(frozen=True)
class Request:
    """A line of the file: ``key`` is its ``id``, None where it has none."""

    images: list[Path]
    question: str
    key: str | int | None


class Questions(Protocol):
    """Where questions come from."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield what is asked as numbered lines of JSON; raise UserError where they cannot be read."""

    def parse(self, line: bytes) -> Request:
        """Return a line's images and question; raise UserError where it has none."""


@dataclass(frozen=True)
class QuestionFile:
    """A file of JSON lines; ``option`` names it in errors, and ``prompt`` is what lines without a question ask."""

    path: Path
    option: str
    prompt: str | None = None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that are not blank."""
        with open_file(self.path, self.option) as lines:
            yield from numbered_lines(lines)

    def parse(self, line: bytes) -> Request:
        """Return a line's images and question."""
        return parse_request(line, self.prompt)


@dataclass(frozen=True)
class QuestionFolder:
    """The images and videos of a folder, and of those in it, in the order of their names: one question about each.

    What is hidden, and what has another ending, is none of them.
    """

    path: Path
    prompt: str

    @cached_property
    def _names(self) -> list[str]:
        from vitcop_llava.tools.media.video_support import SUFFIXES

        found = (path for path in self.path.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES | SUFFIXES)
        names = (path.relative_to(self.path) for path in found if path.is_file())
        return sorted(str(name) for name in names if not any(part.startswith(".") for part in name.parts))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield a line for each file, whose id is its name below the folder."""
        for number, name in enumerate(self._names, start=1):
            asked = {"image": str(self.path / name), "question": self.prompt, "id": name}
            yield number, json.dumps(asked).encode()

    def parse(self, line: bytes) -> Request:
        """Return a line's image and question."""
        return parse_request(line)


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
    check_results(out, path, "--batch", force=force, resume=resume)


def check_results(out: Path, path: Path, option: str, *, force: bool, resume: bool) -> None:
    """Raise unless results can be written to a file.

    Args:
        out: the file.
        path: where the questions come from, which ``option`` named.
        option: see ``path``.
        force: whether a file that is there is replaced.
        resume: whether an interrupted run is gone on with.

    Raises:
        UserError: where it cannot be written, or is there.
    """
    if resume and force:
        raise UserError(
            "--resume must not be given with --force: one goes on with what is there, the other starts again"
        )
    if out.exists() and out.samefile(path):
        raise UserError(f"--out must not be the file of {option}, {path}")
    try:
        check_writable(out, overwrite=force or resume)
    except OSError as error:
        raise cannot_write("--out", out, error) from error
    if not force and not resume and partial_path(out).exists():
        raise UserError(
            f"--out must not be what an interrupted run left, got {partial_path(out)}; --resume goes on with it, "
            "--force starts again"
        )


@dataclass(frozen=True)
class Survey:
    """How many questions there are, and whether one is about a video: then the demo model is that for videos."""

    count: int
    has_video: bool


def survey(questions: Questions) -> Survey:
    """Read all questions once.

    Raises:
        UserError: where they cannot be read.
    """
    count, found = 0, False
    for _, line in questions.lines():
        count += 1
        with suppress(UserError):  # told when it is that line's turn
            found = found or has_video(questions.parse(line).images)
    return Survey(count, found)


def parse_request(line: bytes, prompt: str | None = None) -> Request:
    """Return a line's images and question.

    Args:
        line: a JSON object.
        prompt: the question of a line that has none.

    Raises:
        UserError: where it is no JSON object with these.
    """
    if len(line) > MAX_LINE:
        raise UserError(f"line must have at most {MAX_LINE} bytes, got more")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"line must be a JSON object, got {line.decode(errors='replace').strip()!r:.80}") from error
    if not isinstance(content, dict):
        raise UserError(
            f'line must be a JSON object such as {{"image": "a.png", "question": "..."}}, got {content!r:.80}'
        )
    if ("image" in content) == ("images" in content):
        raise UserError(f'line must have either "image" or "images", got {"both" if "image" in content else "neither"}')
    images = [content["image"]] if "image" in content else content["images"]
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise UserError(f'"image" must be a file name, "images" a list of them, got {images!r:.80}')
    question, key = content.get("question", prompt), content.get("id")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f'"question" must be a text that is not empty, got {question!r:.80}')
    if isinstance(key, bool) or not isinstance(key, str | int | None):
        raise UserError(f'"id" must be a text or an integer, got {key!r:.80}')
    return Request([Path(image) for image in images], question, key)


def fields_of(request: Request) -> dict[str, Any]:
    """Return what a result says of what was asked."""
    key = {} if request.key is None else {"id": request.key}
    return key | {"images": [str(image) for image in request.images], "question": request.question}


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
    """Open a file of lines that an option names, to read it.

    Raises:
        UserError: where it is none, cannot be opened, or holds what no text does.
    """
    try:
        opened = open_regular(path)
        is_text = b"\0" not in opened.read(_BEGINNING)
        opened.seek(0)
    except OSError as error:
        raise UserError(f"{option} must be a file that can be read, got {path}: {error.strerror or error}") from error
    if not is_text:
        opened.close()
        raise UserError(
            f"{option} must be a file of JSON lines, got {path}, which is no text; `vitcop ask FILE QUESTION` "
            "asks about one picture or video"
        )
    return opened
