"""The paper's tables on the demo models, with what these know for a task: a trial of everything but the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitcop_llava.tools.lmms.published import Column, PaperTable, Task

SCENES, CLIPS = Task("vitcop_scenes", questions=72), Task("vitcop_clips", questions=24)


def demo_table(table: PaperTable) -> PaperTable:
    """Return a table with a demo model and its questions in place of the paper's.

    Cut layers and budgets are scaled to the model, as for any other; what it cannot reach is told when it runs.
    """
    name, task = ("demo-video", CLIPS) if table.checkpoint.is_video else ("demo", SCENES)
    model = replace(table.checkpoint, name=name, arguments={}, token_macs=0.0, tower_macs=0.0, is_demo=True)
    costs = [replace(column, task=task) for column in table.columns if column.task and not column.is_score]
    columns = (*costs, Column(task.name, task, ("exact_match",)))
    rows = tuple(replace(row, published=(None,) * len(columns), average=None) for row in table.rows)
    notes = ("this is a demo model with questions of its own: none of these numbers is about the paper's",)
    return PaperTable(table.number, f"{table.title}: a trial on a demo model", model, columns, rows, notes)


def prepare_demo(table: PaperTable, folder: Path) -> None:
    """Write the task of a demo table.

    Raises:
        ValueError: It is of clips, and vitcop-video is not installed.
        OSError: It cannot be written.
    """
    # They bring numpy and Pillow, which a plan needs not.
    from vitcop_llava.tools.lmms.prepare import prepare_clips, prepare_scenes

    (prepare_clips if table.checkpoint.is_video else prepare_scenes)(folder)
