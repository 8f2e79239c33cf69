"""``vitcop ask``: answers a question about images, pruned, and beside it unpruned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcop_llava.tools.cli.errors import FAILURE, UserError
from vitcop_llava.tools.cli.media import (
    End,
    Fps,
    Frames,
    Indices,
    KeyFrames,
    Reader,
    Start,
    TimeLimit,
    clip_fields,
    clips_of,
    describe_clip,
    has_video,
    open_media,
    parse_sampling,
)
from vitcop_llava.tools.cli.methods import MethodName, parse_method
from vitcop_llava.tools.cli.options import (
    AsJson,
    Debug,
    Device,
    Dtype,
    Force,
    Model,
    Retain,
    parse_budget,
)
from vitcop_llava.tools.cli.output import add_row, make_table, print_json, print_result, progress
from vitcop_llava.tools.cli.requests import QuestionFile, Request, check_batch, survey
from vitcop_llava.tools.cli.results import answer_batch
from vitcop_llava.tools.cli.running import (
    Notes,
    budget_mistakes,
    check_question,
    describe,
    model_summary,
    open_model,
    prepare_inputs,
    quiet,
    start_pruning,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from vitcop_core import Method
    from vitcop_llava.report import Report
    from vitcop_llava.tools.cli.media import Medium
    from vitcop_llava.tools.media.video_support import Sampling
    from vitcop_llava.tools.model.answer import Answer
    from vitcop_llava.tools.model.budget import Budget
    from vitcop_llava.tools.model.loading import Loaded

Batch = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help='Read many questions from a file, one JSON object a line: "image" or "images" (or videos), "question", '
        'and "id" if you like.',
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE.jsonl", help="With --batch: write results to this file instead of stdout."
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", metavar="", help="With --out: continue an interrupted run of the same options from FILE.partial."
    ),
]
TIMES = "Times are wall time of a single run"


@dataclass(frozen=True)
class Answers:
    """What the model said, and what pruning did; ``unpruned`` is None where that was not asked for."""

    pruned: Answer
    unpruned: Answer | None
    report: Report


def ask(
    images: Annotated[list[Path] | None, typer.Argument(metavar="IMAGE|VIDEO...", show_default=False)] = None,
    question: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)] = "",
    model: Model = None,
    retain: Retain = None,
    method: MethodName = "vitcop",
    compare: Annotated[bool, typer.Option("--compare", metavar="", help="Run the unpruned model as well.")] = False,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=10**6, help="How long an answer may be, in tokens.")
    ] = 64,
    frames: Frames = None,
    fps: Fps = None,
    indices: Indices = None,
    key_frames: KeyFrames = False,
    start: Start = None,
    end: End = None,
    reader: Reader = "auto",
    time_limit: TimeLimit = 10.0,
    batch: Batch = None,
    out: Out = None,
    force: Force = False,
    resume: Resume = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Answer a question about images and videos, with visual tokens pruned.

    Print the answer, the visual tokens that each stage kept, what that saved, and the time it took. All images and
    videos go into one prompt, in order, before the question. With --batch the questions come from a file, and the
    results are JSON lines; a line that fails has an "error", the others go on, and the exit code is 1. A file of
    results gets its name when it is whole; until then it is FILE.partial.
    """
    budget, notes, paths = parse_budget(retain), Notes(), images or []
    sampling = parse_sampling(frames, fps, indices, key_frames, start, end, reader, time_limit)
    if batch is None:
        check_question(question, paths)
        if out is not None or resume:
            raise UserError(
                f"--{'out' if out else 'resume'} must be given with --batch; the answer to one question is printed"
            )
        media = open_media(paths, sampling, notes.add)
    else:
        check_batch(batch, out, force, resume, paths, question)
    for_video = has_video(paths) if batch is None else survey(QuestionFile(batch, "--batch")).has_video
    chosen = parse_method(method, budget)  # imports torch, so after what is known without it
    loaded = open_model(model, device, dtype, notes, for_video=for_video)
    asker = AskSettings(loaded, method, chosen, budget, compare, max_new_tokens, sampling)
    if batch is not None:
        asker.check()
        is_whole = answer_batch(batch, out, resume, asker.identity(), asker.answer)
        notes.print()
        raise typer.Exit(0 if is_whole else FAILURE)
    outcome = asker.run(media, question, notes)
    if as_json:
        asked = {"question": question, "images": [str(path) for path in paths]}
        print_json(asked | asker.fields(outcome, media, notes))
        return
    print_result("\n".join([question, *map(describe_clip, clips_of(media))]))
    print_result(f"{describe(loaded)}; --retain {budget}")
    print_result(_as_table(outcome))
    notes.print()


@dataclass(frozen=True, eq=False)
class AskSettings:
    """A model, and how it is asked."""

    loaded: Loaded
    name: str
    method: Method
    budget: Budget
    compare: bool
    max_new_tokens: int
    sampling: Sampling

    def check(self) -> None:
        """Raise for a budget that fits no image."""
        start_pruning(self.loaded, self.method, self.budget).remove()

    def identity(self) -> dict[str, Any]:
        """Return what results depend on beside the questions."""
        from vitcop_llava.tools.model.environment import environment

        asked = {"method": repr(self.method), "compare": self.compare, "max_new_tokens": self.max_new_tokens}
        asked |= {"sampling": asdict(self.sampling), "model": model_summary(self.loaded)}
        return {"run": asked, "packages": environment()["packages"]}

    def run(self, media: Sequence[Medium], question: str, notes: Notes) -> Answers:
        """Ask a question about images and clips, pruned, and if wanted unpruned."""
        with quiet(notes):
            inputs = prepare_inputs(self.loaded, media, question, notes)
            return _run(self.loaded, inputs, self.method, self.budget, self.compare, self.max_new_tokens)

    def answer(self, request: Request) -> dict[str, Any]:
        """Return the result of a line of a batch."""
        check_question(request.question, request.images)
        notes = Notes()
        media = open_media(request.images, self.sampling if has_video(request.images) else None, notes.add)
        outcome = self.run(media, request.question, notes)
        return {"answer": outcome.pruned.text} | self.fields(outcome, media, notes)

    def fields(self, outcome: Answers, media: Sequence[Medium], notes: Notes) -> dict[str, Any]:
        """Return what is told of an answer, for machines."""
        settings: dict[str, Any] = {"method": self.name, "retain": str(self.budget)}
        if clips := clips_of(media):
            settings["clips"] = [clip_fields(clip) for clip in clips]
        return settings | _as_json(self.loaded, outcome, notes)


def _run(loaded: Loaded, inputs: Any, method: Method, budget: Budget, compare: bool, max_new_tokens: int) -> Answers:
    from vitcop_llava.tools.model.answer import generate

    unpruned = None
    # Pruned first, so that a budget that does not fit costs no time.
    with budget_mistakes(budget), start_pruning(loaded, method, budget) as pruner:
        if compare:
            # Whatever runs first pays for loading kernels and pages; side by side, neither may.
            with progress("warming up, pruned"):
                generate(loaded, inputs, 1)
        with progress("answering, pruned"):
            pruned = generate(loaded, inputs, max_new_tokens)
        report = pruner.report
    if compare:
        with progress("warming up, unpruned"):
            generate(loaded, inputs, 1)
        with progress("answering, unpruned"):
            unpruned = generate(loaded, inputs, max_new_tokens)
    return Answers(pruned, unpruned, report)


def _as_table(outcome: Answers) -> Table:
    pruned, unpruned, report = outcome.pruned, outcome.unpruned, outcome.report
    caption = f"{TIMES}, after a warm-up of each." if unpruned else f"{TIMES}; --compare runs the unpruned model too."
    table = make_table(("", "pruned", "unpruned", "share"), caption=caption)
    add_row(table, "answer", pruned.text, "not run" if unpruned is None else unpruned.text, style="bold")
    for name, tokens, every in _token_counts(report):
        add_row(table, name, f"{tokens:.4g}", f"{every}", f"{tokens / every:.1%}")
    (macs, full_macs), (cache, full_cache) = report.macs(), report.kv_bytes()
    add_row(table, "prefill, language model", _macs(macs), _macs(full_macs), f"{macs / full_macs:.1%}")
    add_row(table, "cache after it", _bytes(cache), _bytes(full_cache), f"{cache / full_cache:.1%}")
    for name, kind in (("time to first token", "prefill_seconds"), ("time after that", "decode_seconds")):
        cells = ["" if run is None else f"{getattr(run, kind) * 1e3:.1f} ms" for run in (pruned, unpruned)]
        if unpruned is not None and kind == "prefill_seconds":
            cells.append(f"{pruned.prefill_seconds / unpruned.prefill_seconds:.1%}")
        add_row(table, name, *cells)
    add_row(table, "tokens generated", *("" if run is None else str(run.tokens) for run in (pruned, unpruned)))
    return table


def _token_counts(report: Report) -> list[tuple[str, float, int]]:
    """Return the visual tokens after each stage and on average: name, pruned, unpruned."""
    row = report.rows[0]
    assert row.plan is not None  # `ask` always has an image
    every, last = row.plan.visual_tokens, row.plan.num_layers - 1
    found: list[tuple[str, float, int]] = []
    for number, stage in enumerate(row.stages):
        stop = row.stages[number + 1].layer if number + 1 < len(row.stages) else None
        layers = f"layers {stage.layer or 0}-{last if stop is None else stop - 1}"
        found.append((f"{stage.name}: {layers}", stage.tokens, every))
    return [*found, ("visual tokens, average", float(row.plan.average_tokens), every)]


def _macs(macs: int) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9)):
        if macs >= size:
            return f"{macs / size:.3g} {unit}MACs"
    return f"{macs / 1e9:.3f} GMACs"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _as_json(loaded: Loaded, outcome: Answers, notes: Notes) -> dict[str, Any]:
    report = outcome.report
    row = report.rows[0]
    assert row.plan is not None  # `ask` always has an image
    (macs, full_macs), (cache, full_cache) = report.macs(), report.kv_bytes()
    every = row.plan.visual_tokens
    pruned = {
        "stages": [{"name": stage.name, "layer": stage.layer, "tokens": stage.tokens} for stage in row.stages],
        "tokens_per_layer": list(row.plan.tokens_per_layer),
        "average_tokens": float(row.plan.average_tokens),
        "prefill_macs": macs,
        "cache_bytes": cache,
    }
    unpruned = {"average_tokens": float(every), "prefill_macs": full_macs, "cache_bytes": full_cache}
    return {
        "model": model_summary(loaded),
        "visual_tokens": every,
        "text_tokens": row.text_tokens,
        "pruned": _answer(outcome.pruned) | pruned,
        "unpruned": _answer(outcome.unpruned) | unpruned,
        "warmed_up": outcome.unpruned is not None,
        "notes": notes.found,
    }


def _answer(answer: Answer | None) -> dict[str, Any]:
    """Return the fields of a run; None each where it was not run."""
    return {
        "answer": answer and answer.text,
        "generated_tokens": answer and answer.tokens,
        "prefill_seconds": answer and answer.prefill_seconds,
        "decode_seconds": answer and answer.decode_seconds,
    }
