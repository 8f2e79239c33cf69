"""``vitcop compare``: methods and budgets on one model and one set of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitcop_llava.tools.cli.errors import FAILURE, UserError, cannot_write, mistakes
from vitcop_llava.tools.cli.media import (
    End,
    Fps,
    Frames,
    Indices,
    KeyFrames,
    Reader,
    Start,
    TimeLimit,
    changed_option,
    parse_sampling,
)
from vitcop_llava.tools.cli.methods import parse_methods
from vitcop_llava.tools.cli.options import (
    AsJson,
    Debug,
    Device,
    Dtype,
    ForceResults,
    Model,
    Resume,
    check_results_folder,
    command_line,
    parse_budgets,
)
from vitcop_llava.tools.cli.output import (
    add_row,
    make_table,
    print_error,
    print_json,
    print_note,
    print_result,
    progress,
)
from vitcop_llava.tools.cli.questions import read_questions
from vitcop_llava.tools.cli.running import Notes, check_batch_size, describe, model_summary, open_model, quiet
from vitcop_llava.tools.comparison import ANSWERS, FILES, PLOT, PRESETS, REPORT
from vitcop_llava.tools.model.budget import Budget

if TYPE_CHECKING:
    from vitcop_core import Method
    from vitcop_llava.tools.comparison.questions import Fault, QuestionSet
    from vitcop_llava.tools.comparison.run import Options
    from vitcop_llava.tools.comparison.stored import StoredComparison
    from vitcop_llava.tools.comparison.variants import Variant
    from vitcop_llava.tools.media.video_support import Sampling
    from vitcop_llava.tools.model.loading import Loaded

Questions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help='A JSON object a line with "image" or "images" (or videos), "question", "answer" or "answers", if wanted '
        '"id" and "kind"; default: the demo\'s held-out questions.',
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME[(SETTING=VALUE)]",
        help="A method, with settings if you like: vitcop(layers=(1, 6)). Repeat the option, or separate several with "
        "commas.",
    ),
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"{', '.join(PRESETS)}; default: equal-budgets, the seven methods.")
]
Retains = Annotated[
    list[str] | None,
    typer.Option(
        "--retain",
        metavar="N|N%|M/N",
        help="A budget. Repeat the option, or separate several with commas. Default: 1/3, 2/9, 1/9 and 1/18; 1/9 for "
        "table-4 and table-7.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, max=10**6, help="How many questions to ask. Default: 2000 of the demo's, all of a file's."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, max=10**6, help="How many questions in a batch. Default: 50 for a demo model, else 8."
    ),
]
Longest = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=10**6,
        help="How long an answer may be, in tokens. Default: 4 for a demo model, else 16.",
    ),
]
Timing = Annotated[
    int, typer.Option(metavar="N", min=0, max=10**6, help="How many questions to measure the time of; 0 for none.")
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, max=10**9, help="The seed of the resampling behind the intervals.")
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder for report, plot, JSON and answers.")
]

DEFAULT_BUDGETS = ("1/3", "2/9", "1/9", "1/18")
PRESET_BUDGETS = {"table-4": ("1/9",), "table-7": ("1/9",)}
"""The paper's own, 64 of 576 tokens."""

_ANSWERS = 5
"""The columns of `vitcop_llava.tools.comparison.report.cells` that say how well."""


def compare(
    context: typer.Context,
    questions: Questions = None,
    model: Model = None,
    method: Methods = None,
    preset: Preset = None,
    retain: Retains = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    max_new_tokens: Longest = None,
    timing: Timing = 8,
    seed: Seed = 0,
    frames: Frames = None,
    fps: Fps = None,
    indices: Indices = None,
    key_frames: KeyFrames = False,
    start: Start = None,
    end: End = None,
    reader: Reader = "auto",
    time_limit: TimeLimit = 10.0,
    out: Out = Path("vitcop-comparison"),
    force: ForceResults = False,
    resume: Resume = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare pruning methods at equal budgets on one model and one set of questions.

    For each method and budget, print the tokens, multiply-accumulates and cache, the accuracy, its share of the
    unpruned model's with paired intervals, and the times. A report, a plot, the numbers and every answer go into a
    folder. If a method cannot reach a budget, its line says so.
    """
    name = _check_preset(method, preset)
    budgets, notes = _check_budgets(retain, name), Notes()
    sampling = parse_sampling(frames, fps, indices, key_frames, start, end, reader, time_limit)
    check_results_folder(out, FILES, ANSWERS, force, resume)
    asked = None if questions is None else read_questions(questions, limit)
    for fault in asked.faults if asked else ():
        _tell(fault)
    have_video = asked is not None and asked.have_video
    if not have_video and (option := changed_option(sampling)):
        raise UserError(f"{option} must be used with videos, got questions about images alone")
    # The real budgets take the place of this one. It imports torch, so it comes after what is known without.
    methods = parse_methods(method or (), Budget(tokens=Fraction(1)))
    loaded = open_model(model, device, dtype, notes, for_video=have_video)
    asked = asked or _demo_questions(loaded, limit)
    variants = _variants(loaded, methods, name, budgets)
    options = _options(loaded, batch_size, max_new_tokens, timing, seed, sampling)
    with quiet(notes):
        result = _run(loaded, asked, variants, options, out, resume, command_line(context))
    if as_json:
        print_json({**result, "notes": notes.found})
    else:
        _print(loaded, result, out)
        notes.print()
    raise typer.Exit(FAILURE if result["comparison"]["faults"] else 0)


def _check_preset(method: Sequence[str] | None, preset: str | None) -> str:
    """Return the name of the preset."""
    if method and preset:
        raise UserError(f"--preset must not be given with --method, got {preset} and {method[0]!r}")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return preset or "equal-budgets"


def _check_budgets(retain: Sequence[str] | None, name: str) -> dict[str, Budget]:
    """Return the budgets by what was written; a preset may bring its own."""
    if retain and name == "published":
        raise UserError(
            f"--retain must not be given with --preset published, which has its own budgets, got {retain[0]!r}"
        )
    return parse_budgets(retain, PRESET_BUDGETS.get(name, DEFAULT_BUDGETS))


def _demo_questions(loaded: Loaded, limit: int | None) -> QuestionSet:
    from vitcop_llava.tools.comparison.questions import DEMO_QUESTIONS, demo_questions

    if not loaded.knows_scenes:
        raise UserError("--questions must be given with a model of your own; the held-out questions are the demo's")
    with progress("drawing questions"):
        return demo_questions(limit or DEMO_QUESTIONS)


def _variants(loaded: Loaded, methods: Mapping[str, Method], name: str, budgets: Mapping[str, Budget]) -> list[Variant]:
    from vitcop_llava.tools.comparison.variants import at_budgets, preset

    settings = {text: budget.settings for text, budget in budgets.items()}
    with mistakes():
        return at_budgets(methods, settings) if methods else preset(name, loaded.parts, settings)


def _options(
    loaded: Loaded, batch_size: int | None, longest: int | None, timed: int, seed: int, sampling: Sampling
) -> Options:
    from vitcop_llava.tools.comparison.run import Options

    size = batch_size or (50 if loaded.knows_scenes else 8)
    check_batch_size(loaded, size)
    return Options(size, longest or (4 if loaded.knows_scenes else 16), timed, seed, sampling)


def _run(
    loaded: Loaded,
    asked: QuestionSet,
    variants: Sequence[Variant],
    options: Options,
    out: Path,
    resume: bool,
    command: str,
) -> StoredComparison:
    from vitcop_llava.tools.comparison.run import run, write
    from vitcop_llava.tools.model.environment import VIDEO_PACKAGES, environment

    summary = model_summary(loaded)
    try:
        with mistakes():
            found = run(loaded, summary, asked, variants, options, out, resume=resume, on_fault=_tell)
        place = environment(*(VIDEO_PACKAGES if asked.have_video else ()))
        result: StoredComparison = {"command": command, "environment": place, **found}
        write(out, result, f"{summary['source']}: {found['comparison']['questions']:,} questions")
    except OSError as error:
        raise cannot_write("--out", Path(error.filename or out), error) from error
    except KeyboardInterrupt:
        print_note(f"what was answered is in {out}; the same command with --resume goes on")
        raise
    return result


def _tell(fault: Fault) -> None:
    print_error(f"line {fault.number}: {fault.error}")


def _print(loaded: Loaded, result: StoredComparison, out: Path) -> None:
    from vitcop_llava.tools.comparison.report import caption, cells, headings

    print_result(describe(loaded))
    heads, lines = headings(result), cells(result)
    # Two tables, because one is too wide for a terminal: how well, and at what cost.
    table = make_table(heads[:_ANSWERS])
    for line in lines:
        add_row(table, *line[:_ANSWERS])
    print_result(table)
    table = make_table(heads[:2] + heads[_ANSWERS:], caption=caption(result))
    for line in lines:
        if line[_ANSWERS]:  # what is out of reach costs nothing
            add_row(table, *line[:2], *line[_ANSWERS:])
    print_result(table)
    print_result(f"{out / REPORT}, {out / PLOT} and the numbers beside them")
