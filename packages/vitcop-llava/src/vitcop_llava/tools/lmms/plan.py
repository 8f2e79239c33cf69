"""What running a table takes, told before anything is loaded: runs, downloads, hours, and what has to be installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitcop_llava.tools.lmms.published import Column, PaperTable, Row, Task

RUNS, RESULT, REPORT = FILES = ("runs.jsonl", "result.json", "report.md")
"""What a table leaves in its folder: runs as they ended, then the numbers and a page."""

# Measured on an H100, in docs/benchmarks: multiply-accumulates of prefills a second, and seconds of a decoding step,
# which hardly depend on the batch. What comes before the model are guesses.
_MACS_PER_SECOND, _STEP = 200e12, 0.03
_PICTURE, _CLIP = 0.03, 0.5
_TEXT_TOKENS = 60


@dataclass(frozen=True)
class Run:
    """A row's method on a task."""

    row: Row
    task: Task


@dataclass(frozen=True)
class Plan:
    """What is run of a table.

    Attributes:
        table: Of the paper.
        columns: Of it, those that are told.
        rows: Likewise.
        model: What runs: a folder or a hub id, ``demo`` or ``demo-video``.
        limit: Questions of each task; None for all.
        batch_size: Prompts that run together.
    """

    table: PaperTable
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    model: str
    limit: int | None
    batch_size: int

    @property
    def is_demo(self) -> bool:
        """Whether it is a trial on a demo model, with questions of its own."""
        return self.table.checkpoint.is_demo

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, each once."""
        return tuple(dict.fromkeys(column.task for column in self.columns if column.task))

    @property
    def runs(self) -> list[Run]:
        """What is run, row by row."""
        return [Run(row, task) for row in self.rows for task in self.tasks]

    def seconds(self, run: Run) -> float:
        """Return how long a run takes on an H100, about."""
        model = self.table.checkpoint
        tokens = run.row.budget or model.tokens
        prefill = (model.token_macs * (tokens + _TEXT_TOKENS) + model.tower_macs) / _MACS_PER_SECOND
        decoding = run.task.answer_tokens * _STEP / self.batch_size
        return run.task.asked(self.limit) * (prefill + decoding + (_CLIP if model.is_video else _PICTURE))

    @property
    def hours(self) -> float:
        """How long all of it takes on an H100, about."""
        return sum(map(self.seconds, self.runs)) / 3600

    def with_rows_and_tasks(self, rows: Iterable[str], tasks: Iterable[str]) -> Plan:
        """Return it with further rows and tasks of the table, by name."""
        rows, tasks = {*rows, *(row.name for row in self.rows)}, {*tasks}
        columns = [
            column
            for column in self.table.columns
            if column in self.columns or (column.task is not None and column.task.name in tasks)
        ]
        return replace(self, columns=tuple(columns), rows=tuple(row for row in self.table.rows if row.name in rows))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        model = self.table.checkpoint
        size = model.gigabytes if self.model == model.name and not model.is_demo else None
        return {
            "table": self.table.number,
            "title": self.table.title,
            "model": {"source": self.model, "gigabytes": size, "is_there": is_there("models", self.model)},
            "rows": [row.name for row in self.rows],
            "tasks": [
                {
                    "column": _columns_of(self.columns, task),
                    "task": task.name,
                    "questions": task.asked(self.limit),
                    "dataset": task.dataset or None,
                    "is_there": is_there("datasets", task.dataset),
                    "needs": list(task.needs),
                }
                for task in self.tasks
            ],
            "limit": self.limit,
            "batch_size": self.batch_size,
            "runs": len(self.runs),
            "questions": sum(run.task.asked(self.limit) for run in self.runs),
            "hours_on_an_h100": round(self.hours, 2),
        }


def make_plan(
    table: PaperTable,
    *,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    model: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> Plan:
    """Return what is run of a table.

    Args:
        table: Of the paper.
        columns: Names of columns; none for all.
        rows: Names of rows; none for all.
        model: In place of the table's.
        limit: Questions of each task; None for all.
        batch_size: Prompts that run together.

    Raises:
        ValueError: There is no such column or row.
    """
    measured = [column for column in table.columns if column.task]
    chosen = _chosen("--task", columns, [column.name for column in measured])
    named = _chosen("--row", rows, [row.name for row in table.rows])
    return Plan(
        table,
        tuple(column for column in table.columns if not columns or column.name in chosen),
        tuple(row for row in table.rows if row.name in named),
        model or table.checkpoint.name,
        limit,
        batch_size,
    )


def missing(plan: Plan) -> list[str]:
    """Return what tasks need and is not there: ``pycocoevalcap for COCO, Flickr``."""
    needs = dict.fromkeys(need for task in plan.tasks for need in task.needs)
    lacking = [need for need in needs if not _has(need)]
    return [f"{need} for {_columns_of(plan.columns, *_tasks_with(plan.tasks, need))}" for need in lacking]


def is_there(kind: str, name: str) -> bool:
    """Return whether the hub's cache on this machine holds something of a repository, or nothing of the hub is needed.

    Args:
        kind: ``models`` or ``datasets``.
        name: Its id.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    parts = name.split("/")
    return len(parts) != 2 or Path(name).exists() or Path(HF_HUB_CACHE, f"{kind}--{'--'.join(parts)}").is_dir()


def _chosen(option: str, given: Sequence[str], known: Sequence[str]) -> set[str]:
    by_name = {name.lower(): name for name in known}
    if unknown := [name for name in given if name.lower() not in by_name]:
        raise ValueError(f"{option} must be among {', '.join(known)}, got {', '.join(unknown)}")
    return {by_name[name.lower()] for name in given} or {*known}


def _has(need: str) -> bool:
    if need.isupper():
        return need in os.environ  # a variable that a task of lmms-eval reads
    return find_spec(need) is not None or shutil.which(need) is not None


def _tasks_with(tasks: Iterable[Task], need: str) -> list[Task]:
    return [task for task in tasks if need in task.needs]


def _columns_of(columns: Iterable[Column], *tasks: Task) -> str:
    return ", ".join(column.name for column in columns if column.task in tasks)
