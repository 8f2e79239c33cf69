"""What ``vitcop analyze`` looks at: images, questions from a file, or the demo model's held-out scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vitcop_llava.tools.cli.errors import UserError
from vitcop_llava.tools.cli.media import open_images
from vitcop_llava.tools.cli.questions import parsed_lines
from vitcop_llava.tools.model.budget import parse_decimal

if TYPE_CHECKING:
    from PIL import Image

    from vitcop_llava.tools.analysis import Asked
    from vitcop_llava.tools.comparison.questions import Item

Open = Callable[[], "list[Image.Image]"]

DESCRIBE = "Describe the image."
MAX_FILE = 64 * 2**20
"""Bytes of a file of questions."""


@dataclass(frozen=True)
class Prompts:
    """What is run.

    Attributes:
        pictures: For each prompt, what opens its pictures, and its text.
        asked: Questions with answers for Figure 2b; none where it is left out.
        question: The text of all prompts; None where each has its own.
        scenes: How many held-out scenes; None where pictures came from files.
        left_out: Why there is no Figure 2b; None where there is.
    """

    pictures: Sequence[tuple[Open, str]]
    asked: list[Asked]
    question: str | None
    scenes: int | None = None
    left_out: str | None = None


def parse_shares(text: str) -> list[Fraction]:
    """Return the percentages of ``--top-k`` as shares, ascending, each once.

    Raises:
        UserError: One is not a number above 0 and up to 100.
    """
    found = set()
    for part in text.split(","):
        share = parse_decimal(part.strip().removesuffix("%").strip())
        if share is None or not 0 < share <= 100:
            raise UserError(f"--top-k must be percentages above 0 and up to 100, such as 5,10,20, got {text!r:.80}")
        found.add(share / 100)
    return sorted(found)


def check_folder(folder: Path, force: bool) -> None:
    """Raise unless the result can go into ``folder``; asked before the work, so that it is not in vain.

    Raises:
        UserError: It is a file, the folder that it is to be in is missing, or it holds something and is not forced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out must be a folder, got the file {folder}")
    if not folder.parent.is_dir():
        raise UserError(f"--out must be in an existing folder, got {folder}")
    if folder.is_dir() and not force and any(folder.iterdir()):
        raise UserError(f"--out must be a new or empty folder, got {folder}; --force writes into it")


def read_answered(path: Path) -> list[Item]:
    """Read a file of questions with answers, all of it.

    Raises:
        UserError: It cannot be read, holds no question, or a line is not as it should be; the message has its number.
    """
    if not path.is_file():
        raise UserError(f"--questions must be an existing file of JSON lines, got {path}")
    if path.stat().st_size > MAX_FILE:
        raise UserError(f"--questions {path} must have at most {MAX_FILE // 2**20} MiB, got more")
    from vitcop_llava.tools.comparison.questions import Fault

    found = list["Item"]()
    for read in parsed_lines(path):
        if isinstance(read, Fault):
            raise UserError(f"{path}, line {read.number}: {read.error}")
        found.append(read)
    if not found:
        raise UserError(f"--questions {path} must hold at least one question, got none")
    return found


def check_given(
    images: Sequence[Path], question: str | None, lines: Sequence[Item] | None, scenes: int | None, model: str | None
) -> None:
    """Raise for what would come out only after the model is loaded.

    Raises:
        UserError: There are no pictures, scenes are asked for beside pictures, or the question is empty.
    """
    if question is not None and not question.strip():
        raise UserError("--question must not be empty")
    has_pictures = bool(images) or lines is not None
    if scenes is not None and has_pictures:
        raise UserError("--scenes must be given without images and --questions, got both")
    if not has_pictures and scenes is None and model is not None:
        raise UserError("IMAGE or --questions must be given, got neither")


def choose_prompts(
    side: int | None, images: Sequence[Path], question: str | None, lines: Sequence[Item] | None, scenes: int
) -> Prompts:
    """Return which pictures are looked at, with which text, and what is asked for Figure 2b.

    Args:
        side: Of the demo model's images, in pixels; None for a model that knows no scenes.
        images: Pictures, each a prompt.
        question: Their text; None for a request to describe them, or the questions of ``lines``.
        lines: Questions with answers; None for none.
        scenes: How many scenes, where there is neither.

    Raises:
        UserError: There is neither, and the model knows no scenes.
    """
    if not images and lines is None:
        if side is None:
            raise UserError("--scenes must be given to the demo model, which knows them, got --model; give it images")
        return _of_scenes(scenes, side, question)
    asked = [] if lines is None else _asked(lines)
    left_out = None if asked else "the images come without questions and answers; --questions brings them"
    if images:
        text = question or _description(side is not None)
        return Prompts([(partial(open_images, [path]), text) for path in images], asked, text, left_out=left_out)
    # Each picture once, however many questions there are about it.
    first = {line.images: line.question for line in reversed(lines or ())}
    pictures = [(partial(open_images, list(paths)), question or own) for paths, own in reversed(first.items())]
    return Prompts(pictures, asked, question)


def _asked(lines: Sequence[Item]) -> list[Asked]:
    from vitcop_llava.tools.analysis import Asked

    return [Asked(partial(open_images, list(line.images)), line.question, line.answers) for line in lines]


def _description(is_demo: bool) -> str:
    from vitcop_llava.tools.demo.questions import LISTING

    return LISTING if is_demo else DESCRIBE  # in the demo model's few words


def _of_scenes(count: int, side: int, question: str | None) -> Prompts:
    from vitcop_llava.tools.analysis import Asked
    from vitcop_llava.tools.comparison.questions import scene_images, scene_questions

    text = question or _description(True)
    drawn = [partial(scene_images, seed, side) for seed in range(count)]
    asked = [
        Asked(draw, item.question, item.answers) for seed, draw in enumerate(drawn) for item in scene_questions(seed)
    ]
    return Prompts([(draw, text) for draw in drawn], asked, text, scenes=count)
