"""``vitcop eval``: a table of the paper through lmms-eval, measured beside published."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from vitcop_core.files import write_json, write_text
from vitcop_llava.tools.cli.errors import FAILURE, UserError, cannot_write, mistakes
from vitcop_llava.tools.cli.options import (
    AsJson,
    Debug,
    Device,
    Dtype,
    ForceResults,
    Resume,
    check_results_folder,
    command_line,
)
from vitcop_llava.tools.cli.output import add_row, make_table, print_error, print_json, print_note, print_result
from vitcop_llava.tools.cli.running import Notes, open_model, quiet
from vitcop_llava.tools.lmms.demo_tables import demo_table, prepare_demo
from vitcop_llava.tools.lmms.plan import FILES, REPORT, RESULT, RUNS, Plan, make_plan, missing
from vitcop_llava.tools.lmms.published import TABLES

DEMO = "demo"

Table = Annotated[int, typer.Option(metavar="N", help=f"Which table of the paper: {', '.join(map(str, TABLES))}.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER|ID|demo",
        help="What to measure in place of the table's checkpoint; demo tries everything out on the demo model and "
        "questions that it knows.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--task", metavar="NAME,...", help="Columns of the table, such as GQA. Repeat for several. Default: all."
    ),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--row", metavar="NAME,...", help="Rows of the table, such as 'ViTCoP 64'. Repeat for several. Default: all."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, max=10**6, help="How many questions of each task, for a trial. Default: all."),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, max=10**6, help="How many questions in a batch.")]
PlanOnly = Annotated[
    bool,
    typer.Option("--plan", metavar="", help="Print runs, downloads and hours, and end."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="The folder for report, JSON and runs. Default: vitcop-table-N."
    ),
]


def evaluate(
    context: typer.Context,
    table: Table,
    model: Checkpoint = None,
    task: Columns = None,
    row: Rows = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    plan: PlanOnly = False,
    out: Out = None,
    force: ForceResults = False,
    resume: Resume = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a table of the paper with lmms-eval, and print it beside what is published.

    The table's checkpoint answers the table's tasks with each row's method and settings. First comes the plan: runs,
    downloads and hours. A run that fails is told and the others go on; --resume tries it again, and goes on where a
    kill has left off. A report, the numbers and every run go into a folder.
    """
    wanted = _make_plan(table, model, task, row, limit, batch_size)
    if plan:
        _tell_plan(wanted, as_json)
        return
    _check_installed(wanted)
    folder = out or Path(f"vitcop-table-{table}")
    check_results_folder(folder, FILES, RUNS, force, resume)
    if not as_json:
        _tell_plan(wanted, as_json)
    notes = Notes()
    held, result = _run(wanted, folder, resume, device, dtype, notes, command_line(context))
    if as_json:
        print_json({**result, "notes": notes.found})
    else:
        _print(held, result, folder)
        notes.print()
    raise typer.Exit(FAILURE if any(line["errors"] for line in result["rows"]) else 0)


def _make_plan(
    number: int,
    model: str | None,
    columns: Sequence[str] | None,
    rows: Sequence[str] | None,
    limit: int | None,
    batch_size: int,
) -> Plan:
    if number not in TABLES:
        raise UserError(f"--table must be one of {', '.join(map(str, TABLES))}, got {number}")
    is_demo = model == DEMO
    table = demo_table(TABLES[number]) if is_demo else TABLES[number]
    named = {"columns": _names(columns), "rows": _names(rows)}
    with mistakes():
        return make_plan(table, **named, model=None if is_demo else model, limit=limit, batch_size=batch_size)


def _names(given: Sequence[str] | None) -> list[str]:
    return [name.strip() for text in given or () for name in text.split(",")]


def _check_installed(plan: Plan) -> None:
    """Raise where lmms-eval, or something that tasks need, is not there."""
    if find_spec("lmms_eval") is None:
        raise UserError(
            '--table must be run beside lmms-eval, got none installed; pip install "vitcop-llava[eval]" (beside a '
            "torch without CUDA, as the documentation says under Evaluate with lmms-eval)"
        )
    if lacking := missing(plan):
        raise UserError(
            f"--task must be one that everything is installed for, got nothing of {'; '.join(lacking)}; install it, or "
            "name other columns"
        )


def _run(
    plan: Plan, folder: Path, resume: bool, device: str, dtype: str, notes: Notes, command: str
) -> tuple[Plan, dict[str, Any]]:
    """Run a table, and write what came out; return also what of the table the folder holds then."""
    from vitcop_llava.tools.lmms.beside import lines, report
    from vitcop_llava.tools.lmms.runs import Place, run_table, settings_of
    from vitcop_llava.tools.model.environment import environment

    is_demo, tasks = plan.is_demo, folder / "tasks"
    load = partial(
        open_model, None if is_demo else plan.model, device, dtype, notes, for_video=plan.table.checkpoint.is_video
    )
    place = Place(folder, load, dtype, tasks if is_demo else None, print_note, print_error)
    try:
        with mistakes(), quiet(notes, keep_downloads=sys.stderr.isatty()):
            if is_demo:
                prepare_demo(plan.table, tasks)
            records = run_table(plan, place, resume=resume)
        held = plan.with_rows_and_tasks(*({record[key] for record in records} for key in ("row", "task")))
        settings, found = settings_of(plan, dtype), lines(held, records)
        about = {"command": command, "environment": environment(), "settings": settings}
        result = {**about, "plan": held.as_json(), "rows": found}
        write_json(folder / RESULT, result)
        write_text(folder / REPORT, report(held, settings, found))
    except OSError as error:
        if not Path(error.filename or "").is_relative_to(folder):
            raise
        raise cannot_write("--out", Path(error.filename), error) from error
    except KeyboardInterrupt:
        print_note(f"what was measured is in {folder}; the same command with --resume goes on")
        raise
    return held, result


def _tell_plan(plan: Plan, as_json: bool) -> None:
    told = plan.as_json()
    if as_json:
        print_json({"plan": told})
        return
    source, size = told["model"]["source"], told["model"]["gigabytes"]
    download = "" if size is None else f", {size} GB" + (", in the hub's cache" if told["model"]["is_there"] else "")
    print_result(f"Table {told['table']}: {told['title']}")
    print_result(f"model: {source}{download}")
    print_result(f"rows: {', '.join(told['rows'])}")
    table = make_table(("column", "task", "questions", "data on the hub", "in the cache", "needs"))
    for each in told["tasks"]:
        data = each["dataset"] or "local files"
        is_there = "" if each["dataset"] is None else "yes" if each["is_there"] else "no"
        add_row(table, each["column"], each["task"], f"{each['questions']:,}", data, is_there, ", ".join(each["needs"]))
    print_result(table)
    hours = told["hours_on_an_h100"]
    about = f"about {hours:.3g} hours on an H100" if hours >= 1 else "less than an hour on an H100"
    print_result(f"{told['runs']} runs, {told['questions']:,} questions, {'minutes' if plan.is_demo else about}")


def _print(plan: Plan, result: Mapping[str, Any], folder: Path) -> None:
    from vitcop_llava.tools.lmms.beside import caption, cells, headings, remarks

    found = result["rows"]
    table = make_table(headings(plan, found), caption=caption(plan))
    for line in cells(plan, found):
        add_row(table, *line)
    print_result(table)
    for remark in remarks(plan, result["settings"], found):
        print_result(f"- {remark}")
    print_result(f"{folder / REPORT}, and the numbers and runs beside it")
