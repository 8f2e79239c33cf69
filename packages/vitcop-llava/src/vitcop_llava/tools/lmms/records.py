"""What is stored of a table that was run, as plain data."""

from __future__ import annotations

from typing import Any, TypedDict


class Settings(TypedDict):
    """What runs must have in common for their numbers to stand side by side."""

    table: int
    model: str
    arguments: dict[str, Any]
    limit: int | None
    batch_size: int
    dtype: str
    packages: dict[str, str | None]


class Outcome(TypedDict, total=False):
    """What came of a run: ``scores``, ``costs`` and ``questions``, or why there are none.

    ``out_of_reach`` says why the method cannot run on the model at its budget, ``error`` how the run failed.
    """

    scores: dict[str, float]
    costs: dict[str, float]
    questions: int
    out_of_reach: str
    error: str


class Record(Outcome):
    """A run that is over: a row's method, None for the unpruned model, on a task of lmms-eval."""

    row: str
    task: str
    method: str | None
    seconds: float


class Line(TypedDict):
    """A row of a table.

    ``measured`` and ``published`` are by column, None where there is no number. ``tokens`` is how many visual tokens a
    layer sees on average. ``share`` is the mean of the scores over the unpruned model's, in percent, and
    ``published_share`` what the paper gives for it. ``errors`` are by task.
    """

    row: str
    budget: int | None
    method: str | None
    measured: dict[str, float | None]
    published: dict[str, float | None]
    tokens: float | None
    share: float | None
    published_share: float | None
    out_of_reach: str | None
    errors: dict[str, str]
