"""``vitcop batch``: answers many questions, a batch at a time, in one process, several, or on a cluster."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcop_llava.tools.cli.errors import FAILURE, UserError, mistakes
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
from vitcop_llava.tools.cli.methods import MethodName, parse_method
from vitcop_llava.tools.cli.options import AsJson, Debug, Dtype, Force, Model, Resume, Retain, parse_budget
from vitcop_llava.tools.cli.output import Meter, print_json, print_note, print_result
from vitcop_llava.tools.cli.requests import QuestionFile, QuestionFolder, Request, check_results, fields_of, survey
from vitcop_llava.tools.cli.results import Output, interrupted, results_of
from vitcop_llava.tools.cli.running import (
    DEMO_NOTE,
    VIDEO_DEMO_NOTE,
    Notes,
    check_batch_size,
    check_question,
    of_budget,
    open_model,
    quiet,
    told_of_budget,
)

if TYPE_CHECKING:
    from vitcop_core import Method
    from vitcop_llava.tools.batch import Answerer, Outcome, Row
    from vitcop_llava.tools.cli.requests import Questions
    from vitcop_llava.tools.media.video_support import Sampling
    from vitcop_llava.tools.model.budget import Budget
    from vitcop_llava.tools.model.loading import Loaded

    Outcomes = Generator[dict[int, Outcome]]

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A file with a question a line, or a folder of images and videos.",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE.jsonl", help="The file for the answers.", show_default=False)
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help='What is asked about every image of a folder, and by lines without a "question".'
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, max=10**6, help="How many questions run at a time.")]
Longest = Annotated[int, typer.Option(metavar="N", min=1, max=10**6, help="How long an answer may be, in tokens.")]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=10**4,
        help="How many processes, each with a model of its own. Default: one for each device.",
        show_default=False,
    ),
]
Devices = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps; or several: cuda:0,cuda:1.")]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster; auto finds it, local starts one here."),
]
WINDOW = 8
"""How many batches are made of neighboring lines at a time: among so many, those of a batch are alike in size."""


def batch(
    source: Source,
    out: Out,
    prompt: Prompt = None,
    model: Model = None,
    retain: Retain = None,
    method: MethodName = "vitcop",
    max_new_tokens: Longest = 64,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    device: Devices = "auto",
    ray: Ray = None,
    frames: Frames = None,
    fps: Fps = None,
    indices: Indices = None,
    key_frames: KeyFrames = False,
    start: Start = None,
    end: End = None,
    reader: Reader = "auto",
    time_limit: TimeLimit = 10.0,
    force: Force = False,
    resume: Resume = False,
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Answer many questions, with visual tokens pruned: JSON lines or a folder of images in, JSON lines out.

    Each line has "image" or "images" (or videos), a "question", and "id" if you like. Neighboring lines of similar
    size run together. A line that fails has an "error", the others go on, and the exit code is 1. The results are in
    the order of the lines, in a file that gets its name when it is whole; until then they are in FILE.partial, in the
    order in which they came. After an interruption, --resume goes on without losing or repeating a line.
    """
    budget, notes = parse_budget(retain), Notes()
    sampling = parse_sampling(frames, fps, indices, key_frames, start, end, reader, time_limit)
    questions = _questions(source, prompt)
    check_results(out, source, "SOURCE", force=force, resume=resume)
    places = _places(device, workers, ray)
    seen = survey(questions)
    if not seen.has_video and (option := changed_option(sampling)):
        raise UserError(f"{option} must be used with videos, got questions about images alone")
    chosen = parse_method(method, budget)  # imports torch, so after what is known without it
    settings = Settings(model, seen.has_video, chosen, budget, batch_size, max_new_tokens, dtype, sampling)
    run = settings.identity(prompt)
    done = results_of(questions, out, run) if resume else {}
    began, job = time.monotonic(), Job(questions, budget, done)
    with closing(_answers(settings, job.rows(), seen.count - len(done), places, notes)) as answers:
        first = next(answers, {})  # a model that cannot be loaded leaves no file
        with Output(out, run, done) as output, Meter(seen.count, len(done)) as meter:
            try:
                for outcomes in chain([first], answers, [{}]):  # the last lines may be refused
                    job.write(outcomes, output, meter)
            except KeyboardInterrupt:
                print_note(interrupted(out))
                raise
            job.check()
            output.finish()
    seconds, asked = time.monotonic() - began, seen.count - len(done)
    told = {"out": str(out), "lines": seen.count, "taken_over": len(done), "failed": job.failed, "seconds": seconds}
    if as_json:
        print_json(told | {"notes": notes.found})
    else:
        rate = f"{asked / seconds:.3g} lines a second with loading the model"
        print_result(f"{out}: {seen.count - job.failed} of {seen.count} lines answered; {rate}")
        notes.print()
    raise typer.Exit(FAILURE if job.failed else 0)


@dataclass(frozen=True)
class Places:
    """Where models run: on a Ray cluster, in processes of their own (a device for each), or in this process."""

    ray: str | None
    workers: int | None
    devices: tuple[str, ...]


def _places(device: str, workers: int | None, ray: str | None) -> Places:
    devices = [name.strip() for name in device.split(",")]
    if ray is not None:
        if len(devices) > 1:
            raise UserError(f"--device must be one with --ray, got {device}; --workers says how many models run")
        return Places(ray, workers, tuple(devices))
    if workers is not None and workers < len(devices):
        raise UserError(f"--workers must be at least one for each of {len(devices)} devices, got {workers}")
    many = workers or len(devices)
    own_process = workers is None and many == 1
    return Places(None, None if own_process else many, tuple(devices[n % len(devices)] for n in range(many)))


def _questions(source: Path, prompt: str | None) -> Questions:
    if prompt is not None and not prompt.strip():
        raise UserError("--prompt must be a text that is not empty, got none")
    if source.is_dir():
        if prompt is None:
            raise UserError(f"--prompt must be given with a folder, got the folder {source} alone")
        found = QuestionFolder(source, prompt)
        if next(found.lines(), None) is None:
            raise UserError(f"SOURCE must be a folder with images or videos in it, got {source}")
        return found
    if not source.is_file():
        raise UserError(f"SOURCE must be an existing file of JSON lines, or a folder, got {source}")
    return QuestionFile(source, "SOURCE", prompt)


@dataclass(frozen=True)
class Settings:
    """A model, and how it is asked; processes are sent a copy."""

    model: str | None
    for_video: bool
    method: Method
    budget: Budget
    batch_size: int
    max_new_tokens: int
    dtype: str
    sampling: Sampling

    def identity(self, prompt: str | None) -> dict[str, Any]:
        """Return what results depend on beside the questions: neither where the model runs, nor how many at a time."""
        from vitcop_llava.tools.model.environment import environment

        asked: dict[str, Any] = {"model": self.model, "dtype": self.dtype, "method": repr(self.method)}
        asked |= {"prompt": prompt, "max_new_tokens": self.max_new_tokens, "sampling": asdict(self.sampling)}
        return {"run": asked, "packages": environment()["packages"]}

    def answerer(self, loaded: Loaded) -> Answerer:
        """Return a model that answers.

        Raises:
            UserError: for a budget or a batch size that does not fit it.
        """
        from vitcop_llava.tools.batch import Answerer

        check_batch_size(loaded, self.batch_size)
        try:
            return Answerer(
                loaded,
                self.method,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                sampling=self.sampling,
            )
        except (ValueError, TypeError) as error:  # the rest was checked, so it is the budget
            raise of_budget(self.budget, error) from error

    def anywhere(self) -> Settings:
        """Return what means the same to a process with another working directory."""
        if self.model is None or not Path(self.model).is_dir():
            return self
        return replace(self, model=str(Path(self.model).absolute()))

    @property
    def source(self) -> str | None:
        """Where the model comes from; None for the demo model for images."""
        from vitcop_llava.tools.media.video_support import need_support

        if self.model is not None or not self.for_video:
            return self.model
        with mistakes():
            return str(need_support().demo_folder)

    @contextmanager
    def opened(self, device: str) -> Iterator[Answerer]:
        """Load the model in a process of its own."""
        from vitcop_llava.tools.model.loading import load

        with quiet(Notes()):
            with mistakes():
                loaded = load(self.source, device=device, dtype=self.dtype)
            with self.answerer(loaded) as answerer:
                yield answerer


def _answers(settings: Settings, rows: Iterator[tuple[int, Row]], left: int, places: Places, notes: Notes) -> Outcomes:
    """Yield the outcomes of all rows, each once, as they come."""
    from vitcop_llava.tools.batch.rows import chunks

    window = WINDOW * settings.batch_size
    if places.ray is None and places.workers is None:
        (device,) = places.devices
        loaded = open_model(settings.model, device, settings.dtype, notes, for_video=settings.for_video)
        with quiet(notes), settings.answerer(loaded) as answerer:
            for chunk in chunks(rows, window):
                yield from answerer.stream(chunk)
        return
    if settings.model is None:
        notes.add(VIDEO_DEMO_NOTE if settings.for_video else DEMO_NOTE)
    if places.ray is not None:
        from vitcop_llava.tools.batch.on_ray import answer_on_ray

        (device,), sizes = places.devices, (settings.batch_size, window)
        with mistakes():
            yield from answer_on_ray(
                places.ray, settings.anywhere().opened, device, rows, workers=places.workers, sizes=sizes
            )
        return
    import torch

    from vitcop_llava.tools.batch.processes import Crew

    many = len(places.devices)
    # Of the last lines every process gets some.
    window = min(window, max(settings.batch_size, -(-left // (2 * many))))
    with Crew(settings.opened, places.devices, max(1, torch.get_num_threads() // many)) as crew:
        yield from crew.answer(chunks(rows, window))


class Job:
    """The lines of one run: asked once each, and each with one result.

    Args:
        questions: Where they come from.
        budget: Of an image, for errors.
        done: The lines that have a result already.
    """

    def __init__(self, questions: Questions, budget: Budget, done: Mapping[int, Any]) -> None:
        self.failed = 0
        self._questions, self._budget, self._done = questions, budget, done
        self._asked, self._refused = dict[int, Request](), list[dict[str, Any]]()

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield what is to be asked, by the numbers of lines; a line that cannot be asked gets its result beside it."""
        from vitcop_llava.tools.batch import Row

        for number, line in self._questions.lines():
            if number in self._done:
                continue
            fields: dict[str, Any] = {"line": number}
            try:
                request = self._questions.parse(line)
                fields |= fields_of(request)
                check_question(request.question, request.images)
            except UserError as error:
                self._refused.append(fields | {"error": str(error)})
                continue
            self._asked[number] = request
            yield number, Row(tuple(request.images), request.question)

    def write(self, outcomes: Mapping[int, Outcome], output: Output, meter: Meter) -> None:
        """Write the results of what came back, and of what was refused until now; a line that has one gets no other."""
        results, self._refused = self._refused, []
        results += [self._result(number, outcome) for number, outcome in outcomes.items() if number in self._asked]
        output.add(*results)
        for result in results:
            if "error" in result:
                self.failed += 1
                meter.print_error(f"{self._questions.path}, line {result['line']}: {result['error']}")
        meter.advance(len(results))

    def check(self) -> None:
        """Raise unless every line has its result.

        Raises:
            WorkerError: One has none.
        """
        from vitcop_llava.tools.batch.processes import WorkerError

        if self._asked:
            raise WorkerError(f"{len(self._asked)} lines came back without a result; --resume asks them again")

    def _result(self, number: int, outcome: Outcome) -> dict[str, Any]:
        fields = {"line": number} | fields_of(self._asked.pop(number))
        if outcome.error is not None:
            return fields | {"error": told_of_budget(self._budget, outcome.error)}
        tokens = {"visual_tokens": outcome.visual_tokens, "average_tokens": outcome.average_tokens}
        return fields | {"answer": outcome.answer} | tokens
