"""What is asked and what comes back, row by row and as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from vitcop_core.shown import shown

MEDIA = ("image", "images")
"""The columns that say what a question is about: one thing, or a list of several."""


@dataclass(frozen=True, eq=False)
class Row:
    """A question.

    Attributes:
        media: The images and clips that it is about, in order: names of files, contents of image files (bytes), Pillow
            images, or arrays ``[H, W, 3]`` uint8.
        question: The text after them.
    """

    media: Sequence[Any]
    question: Any


@dataclass(frozen=True)
class Outcome:
    """What became of a question.

    Attributes:
        answer: The text; None where there is none.
        error: Why there is none; None where there is an answer.
        visual_tokens: How many tokens its images and clips have.
        average_tokens: How many of them a layer of the language model sees, on average over the layers.
    """

    answer: str | None = None
    error: str | None = None
    visual_tokens: int | None = None
    average_tokens: float | None = None


def rows_of(columns: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a batch of columns.

    Args:
        columns: ``question``, and ``image`` or ``images``; each a list or an array with an entry a row.

    Raises:
        ValueError: A column is missing, or they differ in length.
    """
    media = [name for name in MEDIA if name in columns]
    if len(media) != 1 or "question" not in columns:
        raise ValueError(f'columns must have "question", and either "image" or "images", got {shown(sorted(columns))}')
    name = media[0]
    lengths = {each: len(columns[each]) for each in (name, "question")}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must have as many entries each, got {lengths}")
    every = columns[name] if name == "images" else ([one] for one in columns[name])
    return [Row(each, question) for each, question in zip(every, columns["question"], strict=True)]


def columns_of(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """Return outcomes as columns, by the names of the fields."""
    return {each.name: [getattr(outcome, each.name) for outcome in outcomes] for each in fields(Outcome)}


def chunks(rows: Iterable[tuple[int, Row]], size: int) -> Iterator[dict[int, Row]]:
    """Yield so many rows at a time, by their numbers; the last are fewer."""
    left = iter(rows)
    while chunk := dict(islice(left, size)):
        yield chunk
