"""Runs a table through lmms-eval, one method on one task after the other, so that a kill costs one of these at most."""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vitcop_core import Method
from vitcop_core.journal import Journal, lines_of, partial_path
from vitcop_llava.tools.lmms.arguments import Arguments
from vitcop_llava.tools.lmms.plan import RUNS, Plan, Run
from vitcop_llava.tools.lmms.records import Outcome, Record, Settings
from vitcop_llava.tools.lmms.rows import methods_of
from vitcop_llava.tools.model.environment import VIDEO_PACKAGES, environment
from vitcop_llava.tools.model.loading import Loaded

if TYPE_CHECKING:
    from vitcop_llava.tools.lmms.model import Vitcop

_MOST_BYTES = 2**28


@dataclass(frozen=True)
class Place:
    """Where a table is run, and who is told.

    Attributes:
        folder: Of the results.
        load: Loads the model, if something is left to run.
        dtype: What it was asked to compute in.
        tasks: A folder with the tasks, where these are not lmms-eval's own.
        told: Hears what is going on.
        failed: Hears of runs that failed.
    """

    folder: Path
    load: Callable[[], Loaded]
    dtype: str
    tasks: Path | None
    told: Callable[[str], None]
    failed: Callable[[str], None]


def run_table(plan: Plan, place: Place, *, resume: bool) -> list[Record]:
    """Run what is missing of a table; each run is stored as it ends. One that fails is told, and the others go on.

    Args:
        plan: What is run.
        place: Where.
        resume: Keep what an earlier call left in the folder, and try again what failed; otherwise it is replaced.

    Returns:
        All that the folder holds then.

    Raises:
        ValueError: What is to be resumed is of other settings, or the model does not fit the table.
        OSError: A record cannot be written.
        Exception: Whatever `load` raises.
    """
    settings = settings_of(plan, place.dtype)
    before = [record for record in _stored(place.folder, settings) if "error" not in record] if resume else []
    done = {(record["row"], record["task"]) for record in before}
    left = [run for run in plan.runs if (run.row.name, run.task.name) not in done]
    found = [*before]
    with Journal(place.folder / RUNS, [settings, *before]) as journal:
        for record in _measure(plan, place, left):
            journal.add(record)
            found.append(record)
        journal.finish()
    return found


def settings_of(plan: Plan, dtype: str) -> Settings:
    """Return what runs must have in common for their numbers to stand side by side."""
    packages = environment("lmms-eval", *(VIDEO_PACKAGES if plan.table.checkpoint.is_video else ()))["packages"]
    settings: Settings = {
        "table": plan.table.number,
        "model": plan.model,
        "arguments": dict(plan.table.checkpoint.arguments),
        "limit": plan.limit,
        "batch_size": plan.batch_size,
        "dtype": dtype,
        "packages": packages,
    }
    plain: Settings = json.loads(json.dumps(settings))
    return plain


def _stored(folder: Path, settings: Settings) -> list[Record]:
    """Return what an earlier call left, whole or not.

    Raises:
        ValueError: It is of other settings.
        OSError: It cannot be read.
    """
    # A call that goes on with a whole file has left the newer one unfinished.
    for path in (partial_path(folder / RUNS), folder / RUNS):
        first, *records = (lines_of(path, _MOST_BYTES) if path.exists() else []) or [None]
        if first is not None and first != settings:
            raise ValueError(
                f"--resume must go on with the same table, model, settings and versions, got {path} of others; --force "
                "starts again"
            )
        if first is not None:
            return records
    return []


def _measure(plan: Plan, place: Place, left: Sequence[Run]) -> Iterator[Record]:
    if not left:
        return
    loaded = place.load()
    methods = methods_of(plan.table, loaded.parts.shape.num_layers, _visual_tokens(plan, loaded))
    Arguments(**plan.table.checkpoint.arguments).clipping(loaded)  # so that what does not fit is told before the work
    manager, clock = _task_manager(place.tasks), _Clock(plan, left)
    for number, run in enumerate(left):
        method, name = methods[run.row.name], f"{run.row.name}, {run.task.name}"
        place.told(f"{name}: {number + 1} of {len(left)}{clock.told(number)}")
        started = time.perf_counter()
        outcome = _run(plan, run, loaded, method, manager)
        seconds = time.perf_counter() - started
        clock.add(run, seconds)
        if "error" in outcome:
            place.failed(f"{name}: {outcome['error']}")
        settings = None if method is None else repr(method)
        yield {"row": run.row.name, "task": run.task.name, "method": settings, "seconds": seconds, **outcome}


def _task_manager(folder: Path | None) -> Any:
    from lmms_eval.tasks import TaskManager

    if folder is None:
        return TaskManager("ERROR", model_name="vitcop")
    # All that is needed is in the folder, and lmms-eval's own tasks take seconds to find.
    return TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="vitcop")


def _visual_tokens(plan: Plan, loaded: Loaded) -> int:
    """Return how many visual tokens an image has, or a clip of as many frames as the table's.

    Raises:
        ValueError: The table is about clips, and the model reads none.
    """
    parts = loaded.parts
    if not plan.table.checkpoint.is_video:
        return parts.visual_tokens
    if parts.video is None:
        raise ValueError(f"--model must be one that reads clips for this table, got a {type(loaded.model).__name__}")
    return parts.video.clip(Arguments(**plan.table.checkpoint.arguments).max_frames_num).tokens


def _run(plan: Plan, run: Run, loaded: Loaded, method: Method | None, manager: Any) -> Outcome:
    from vitcop_llava.tools.lmms.model import Vitcop

    try:
        arguments = plan.table.checkpoint.arguments
        model = Vitcop(loaded=loaded, batch_size=plan.batch_size, method=method or "none", **arguments)
    except ValueError as error:
        return {"out_of_reach": str(error)}
    try:
        return _evaluate(model, plan, run, manager)
    # Whatever a task raises is that run's; some end the process where a file is missing.
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        model.clean()


def _evaluate(model: Vitcop, plan: Plan, run: Run, manager: Any) -> Outcome:
    from lmms_eval.evaluator import simple_evaluate

    # Some tasks write files to send in somewhere, which nobody asked for; some print to stdout, which is the caller's.
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        results = simple_evaluate(
            model=model,
            tasks=[run.task.name],
            batch_size=plan.batch_size,
            limit=run.task.limit(plan.limit),
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=False,
            verbosity="ERROR",
            cli_args=Namespace(output_path=folder, process_with_media=False),
        )
    scores: dict[str, list[float]] = {}
    for task in results["results"].values():  # several, if it is a group: their mean counts
        for key, value in task.items():
            name, _, kind = key.partition(",")
            if kind and "_stderr" not in name and isinstance(value, Real) and math.isfinite(value):
                scores.setdefault(name, []).append(float(value))
    return {
        "scores": {name: sum(values) / len(values) for name, values in scores.items()},
        "costs": {name: float(value) for name, value in results["throughput"].items() if name.startswith("avg_")},
        "questions": int(sum(sizes["effective"] for sizes in results["n-samples"].values())),
    }


class _Clock:
    """Says how long the rest takes, from how much longer or shorter runs took than planned.

    Args:
        plan: What says how long runs take.
        runs: All that there are.
    """

    def __init__(self, plan: Plan, runs: Sequence[Run]) -> None:
        self._planned = [plan.seconds(run) for run in runs]
        self._plan, self._spent, self._expected = plan, 0.0, 0.0

    def add(self, run: Run, seconds: float) -> None:
        """Take note of a run that is over."""
        self._spent += seconds
        self._expected += self._plan.seconds(run)

    def told(self, done: int) -> str:
        """Return what is left after so many runs, as the end of a sentence; nothing before the first is over."""
        if not self._expected:
            return ""
        minutes = sum(self._planned[done:]) * self._spent / self._expected / 60
        return f", about {minutes / 60:.1f} h left" if minutes > 90 else f", about {max(1, round(minutes))} min left"
