"""``vitcop bench``: prefill, time per token and memory of every method, beside what its plan allows."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcop_llava.tools.cli.bench_model import open_bench_model
from vitcop_llava.tools.cli.errors import UserError, mistakes
from vitcop_llava.tools.cli.methods import METHODS, method_names
from vitcop_llava.tools.cli.options import (
    AsJson,
    Debug,
    Device,
    Dtype,
    Force,
    Model,
    check_output,
    parse_budgets,
    write_file,
)
from vitcop_llava.tools.cli.output import add_row, make_table, print_json, print_result
from vitcop_llava.tools.cli.running import Notes, quiet
from vitcop_llava.tools.model.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitcop_llava.tools.benchmark.host import HostResult
    from vitcop_llava.tools.benchmark.prompts import BenchPrompt
    from vitcop_llava.tools.benchmark.result import BenchResult
    from vitcop_llava.tools.benchmark.run import BenchSettings
    from vitcop_llava.tools.cli.bench_model import BenchModel

DEFAULT_BUDGETS = ("1/3", "2/9", "1/9")
"""192, 128 and 64 of LLaVA-1.5's 576 tokens."""

ShapeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Random weights in the shape of llava-1.5-7b, llava-1.5-13b, llava-next-7b, llava-next-13b, "
        "llava-next-video-7b, qwen2.5-vl-7b, qwen3-vl-8b, or medium, medium-next, medium-video, quarter, narrow, "
        "small, small-next, small-video, small-qwen2.5, small-qwen3.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method", metavar="NAME,...", help=f"{', '.join(METHODS)}; repeat the option for several. Default: all."
    ),
]
BudgetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--retain",
        metavar="N|N%,...",
        help="How many visual tokens of an image or clip to keep on average, or which share of them. Repeat the option "
        "for several. Default: 1/3, 2/9, 1/9.",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="The size in pixels, for models that see images in their own sizes. Default: the one with the most "
        "tokens, or with 1,024 where there is no most.",
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="eager, sdpa, flash_attention_2, ...; default: sdpa, or the checkpoint's."),
]


@dataclass(frozen=True)
class Layout:
    """What every prompt looks like; see `vitcop_llava.tools.benchmark.prompts.make_prompt`."""

    batch: int
    text_tokens: int
    image_size: tuple[int, int] | None
    frames: int | None
    seed: int


def bench(
    shape: ShapeOption = None,
    model: Model = None,
    method: Methods = None,
    retain: BudgetsOption = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, max=10**6, help="How many rounds, after one that warms up.")
    ] = 5,
    new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=10**6, help="How many tokens to generate for each prompt.")
    ] = 8,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=10**6, help="How many prompts at a time.")] = 1,
    image_size: ImageSize = None,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=10**6, help="How many frames of a clip, for video models. Default: 8."),
    ] = None,
    text_tokens: Annotated[
        int, typer.Option(metavar="N", min=2, max=10**6, help="How many tokens of text in a prompt.")
    ] = 60,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=10**9, help="The seed of the prompt and of the order of runs.")
    ] = 0,
    brief: Annotated[
        bool,
        typer.Option(
            "--brief",
            metavar="",
            help="Measure only time to the first token, cache and MACs, and print them as three lines and as bars.",
        ),
    ] = False,
    host: Annotated[
        bool,
        typer.Option(
            "--host",
            metavar="",
            help="Measure only the work of the host, as ratios to the unpruned model. Default shape: narrow.",
        ),
    ] = False,
    capture: Annotated[
        bool,
        typer.Option(
            "--capture", metavar="", help="Replay the prefills of methods as CUDA graphs; unpruned ones run as ever."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Store the result in this file.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure prefill, time per token and memory: unpruned, and each method at each budget.

    All variants take turns in one run. Beside each prefill stands its oracle, the same model at the plan's lengths with
    nothing to decide, and what the plan saves in multiply-accumulates. Then comes where the time goes.
    """
    methods, size = method_titles(method), parse_size(image_size)
    budgets = tuple(dict.fromkeys(parse_budgets(retain, DEFAULT_BUDGETS).values()))
    if out is not None:
        check_output(out, force, kind="JSON")
    if brief and host:
        raise UserError("--brief must not be given with --host; leave one out")
    if capture and host:
        raise UserError("--capture must not be given with --host; leave one out")
    notes = Notes()
    if host:
        device, dtype = ("cpu" if device == "auto" else device), ("float32" if dtype == "auto" else dtype)
        shape = shape or (None if model else "narrow")
    ready = open_bench_model(shape, model, device, dtype, attention, notes)
    from vitcop_llava.tools.benchmark.run import BenchSettings

    layout = Layout(batch, text_tokens, size, frames, seed)
    with quiet(Notes()):  # what pruning warns of is about answers, and there are none
        prompt = _prompt(ready, layout)
        settings = BenchSettings(methods, _tokens(budgets, prompt), repeats, new_tokens, seed, brief, capture)
        result: Any = _run_host(ready, prompt, settings) if host else _run(ready, prompt, settings)
    stored = _stored(ready, prompt, result, asdict(settings) | {"host": host})
    if out is not None:
        write_file((json.dumps(stored, indent=1) + "\n").encode(), out, force)
    if as_json:
        print_json(stored)
        return
    show = _print_host if host else _print_brief if brief else _print
    show(stored["command"], ready, result)
    notes.print()


def method_titles(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the methods of ``--method``, by the names that papers use; all where there is none.

    Raises:
        UserError: for one that is none.
    """
    names = [name.strip().lower() for text in given or () for name in text.split(",")] or [*METHODS]
    for name in names:
        if name not in method_names():
            raise UserError(f"--method must be one of {', '.join(method_names())}, got {name!r}")
    return tuple(METHODS.get(name, name) for name in dict.fromkeys(names))


def _place(name: str) -> tuple[int, str]:
    """Return where a method stands among all: those of vitcop in their order, then the others by name."""
    known = [*METHODS.values()]
    return (known.index(name), "") if name in known else (len(known), name)


def parse_size(given: str | None) -> tuple[int, int] | None:
    """Return the width and height of ``--image-size``.

    Raises:
        UserError: where it is not two positive numbers with an x between them.
    """
    if given is None:
        return None
    sides = given.lower().split("x")
    if len(sides) != 2 or not all(
        side.isascii() and side.isdecimal() and len(side) < 6 and int(side) > 0 for side in sides
    ):
        raise UserError(f"--image-size must be width and height in pixels, such as 672x336, got {given!r}")
    return int(sides[0]), int(sides[1])


def _prompt(ready: BenchModel, layout: Layout) -> BenchPrompt:
    from vitcop_llava.tools.benchmark.prompts import make_prompt

    given = asdict(layout)
    if ready.parts.video is not None and layout.frames is None and layout.image_size is None:
        given["frames"] = 8
    with mistakes(options={"frames": "--frames"}):
        return make_prompt(ready.model, ready.parts, **given)


def _tokens(budgets: tuple[Budget, ...], prompt: BenchPrompt) -> tuple[int | float, ...]:
    """Return the budgets in visual tokens of a prompt."""
    every, retained = prompt.tiling.tokens, list[int | float]()
    for budget in budgets:
        tokens = budget.tokens or (budget.share or Fraction(1)) * every
        if tokens > every:
            raise UserError(f"--retain must be at most the {every} visual tokens of a prompt, got {budget}")
        retained.append(int(tokens) if tokens.denominator == 1 else float(tokens))
    return tuple(dict.fromkeys(retained))


def _run(ready: BenchModel, prompt: BenchPrompt, settings: BenchSettings) -> BenchResult:
    from vitcop_llava.tools.benchmark.run import run_bench

    return run_bench(ready.model, ready.parts, prompt, settings)


def _run_host(ready: BenchModel, prompt: BenchPrompt, settings: BenchSettings) -> HostResult:
    from vitcop_llava.tools.benchmark.host import measure_host

    if ready.model.device.type != "cpu":
        raise UserError(f"--device must be cpu with --host, got {ready.model.device.type}")
    if settings.new_tokens < 2:
        raise UserError(f"--new-tokens must be at least 2 with --host, got {settings.new_tokens}")
    with mistakes():
        return measure_host(ready.model, ready.parts, prompt, settings)


def _stored(
    ready: BenchModel, prompt: BenchPrompt, result: BenchResult | HostResult, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the result with everything that it takes to repeat it."""
    from vitcop_llava.tools.model.environment import environment

    tiled = {} if prompt.image_size is None else {"image_size": "x".join(map(str, prompt.image_size))}
    clip = {"frames": prompt.tiling.frames} if prompt.tiling.frames else {}
    given: dict[str, Any] = {
        **ready.options,
        "method": ",".join(name.lower() for name in sorted(settings["methods"], key=_place)),
        "retain": ",".join(f"{tokens:.10g}" for tokens in settings["retained_tokens"]),
        **{name: settings[name] for name in ("repeats", "new_tokens", "seed")},
        **{"batch": prompt.batch, "text_tokens": prompt.text_tokens, **tiled, **clip},
    }
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words += [f"--{name}" for name in ("brief", "host", "capture") if settings[name]]
    command = shlex.join(["vitcop", "bench", *words])
    return {"command": command, "environment": environment(), **given, "model": ready.summary} | asdict(result)


def _print(command: str, ready: BenchModel, result: BenchResult) -> None:
    from vitcop_llava.tools.benchmark import report

    table = make_table(report.SHORT_HEADINGS, title=command, caption=report.CAPTION)
    busy = make_table(report.BUSY_HEADINGS, title="What the GPU works", caption=report.BUSY_CAPTION)
    parts = make_table(report.PART_HEADINGS, title="Where the prefill's time goes")
    for row in result.rows:
        add_row(table, *report.cells(row))
        if row.busy_prefill is not None:
            add_row(busy, *report.busy_cells(row))
        if row.parts is not None:
            add_row(parts, *report.part_cells(row))
    print_result(_heading(ready, result))
    print_result(table)
    for remark in report.remarks(result):
        print_result(remark)
    if busy.row_count:
        print_result(busy)
    print_result(parts)


def _print_brief(command: str, ready: BenchModel, result: BenchResult) -> None:
    from vitcop_llava.tools.benchmark.brief import bars, lines, measured, name
    from vitcop_llava.tools.benchmark.report import remarks

    table = make_table(("", *map(name, measured(result))), title=command)
    for cells in lines(result):
        add_row(table, *cells)
    print_result(_heading(ready, result))
    print_result(table)
    for line in (*bars(result), *remarks(result)):
        print_result(line)


def _print_host(command: str, ready: BenchModel, result: HostResult) -> None:
    table = make_table(("method", "tokens", "prefill", "of unpruned", "a token", "of unpruned"), title=command)
    for row in result.rows:
        kept = "" if row.retained_tokens is None else f"{row.retained_tokens:g}"
        spent = (1e3 * median(row.prefill), 1e3 * median(row.token))
        cells = zip(spent, (row.prefill_ratio, row.token_ratio), strict=True)
        add_row(table, row.name, kept, *(cell for ms, ratio in cells for cell in (f"{ms:.4g} ms", f"{ratio:.3f}")))
    print_result(_heading(ready, result))
    print_result(table)
    for remark in result.missing:
        print_result(remark)


def _heading(ready: BenchModel, result: BenchResult | HostResult) -> str:
    return f"{ready.describe()}; {result.visual_tokens} visual tokens and {result.text_tokens} of text a prompt"
