"""A whole comparison: who can be asked, the answers, the numbers, the files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vitcop_core.files import write_json, write_text, write_whole
from vitcop_llava.tools.comparison import ANSWERS, PLOT, REPORT, RESULT
from vitcop_llava.tools.comparison.answers import AnswerFile, Asker, ask_all
from vitcop_llava.tools.comparison.questions import Fault, QuestionSet, chunks
from vitcop_llava.tools.comparison.report import markdown
from vitcop_llava.tools.comparison.result import Results, comparison, timing
from vitcop_llava.tools.comparison.stored import Asking, Measurements, StoredComparison, StoredTiming
from vitcop_llava.tools.comparison.timing import Timed, time_variants
from vitcop_llava.tools.comparison.variants import UNPRUNED, Variant, find_problem
from vitcop_llava.tools.media.video_support import Sampling
from vitcop_llava.tools.model.environment import environment
from vitcop_llava.tools.model.loading import Loaded

TIMED_TOKENS = 4


@dataclass(frozen=True)
class Options:
    """How questions are asked.

    Attributes:
        batch_size: Questions a batch.
        max_new_tokens: Longest answer.
        timed: Questions to take the time of; 0 for none.
        seed: Of the resampling.
        sampling: Which frames of a video are looked at.
    """

    batch_size: int
    max_new_tokens: int
    timed: int
    seed: int
    sampling: Sampling = field(default_factory=Sampling)


def run(
    loaded: Loaded,
    model: Mapping[str, Any],
    questions: QuestionSet,
    variants: Sequence[Variant],
    options: Options,
    folder: Path,
    *,
    resume: bool = False,
    on_fault: Callable[[Fault], None] = lambda fault: None,
) -> Measurements:
    """Ask every variant and the unpruned model every question; the answers are in the folder as they come.

    Args:
        loaded: The model.
        model: What is told of it.
        questions: The questions.
        variants: The variants; one that does not fit the model is told of in the result.
        options: How they are asked.
        folder: Of the answers.
        resume: Take over the answers that an interrupted run left there.
        on_fault: Hears of each question that could not be asked, when that is known.

    Returns:
        ``comparison``, which is the same in every run on the same machine, and ``timing``, which is not, or None.

    Raises:
        ValueError: No variant fits the model, no question can be asked, or what is to be resumed is of another run.
        OSError: The answers cannot be written.
    """
    found = {variant.name: find_problem(variant, loaded.model) for variant in variants}
    results = Results([UNPRUNED, *variants], {name: said for name, said in found.items() if said is not None})
    results.faults.extend(questions.faults)
    able = [variant for variant in results.variants if variant.name not in results.problems]
    if len(able) == 1:
        said = "; ".join(f"{name}: {problem}" for name, problem in results.problems.items())
        raise ValueError(f"variants must hold a method that fits the model at its budget, got none: {said}")
    batches = chunks(questions.items, options.batch_size)
    header = {"model": dict(model), "digest": questions.digest, "batch_size": options.batch_size}
    header |= {"max_new_tokens": options.max_new_tokens, "variants": {each.name: repr(each.method) for each in able}}
    header |= {"sampling": asdict(options.sampling), "packages": environment()["packages"]}
    asker = Asker(loaded, able, options.max_new_tokens, options.sampling)
    with AnswerFile(folder / ANSWERS, header, batches, resume=resume, fits=asker.could_have_found) as file:
        with _bar(len(questions.items), "questions") as bar:
            for batch in ask_all(asker, batches, file):
                for result in batch:
                    if isinstance(result, Fault):
                        on_fault(result)
                results.add(batch)
                bar.update(len(batch))
        if not results.answered:
            raise ValueError(
                f"questions must hold one that can be asked, got none of {len(questions.items)}: "
                f"{results.faults[0].error}"
            )
        file.finish()
    size = loaded.dtype.itemsize
    asking: Asking = {
        "model": dict(model),
        "batch_size": options.batch_size,
        "max_new_tokens": options.max_new_tokens,
    }
    compared = comparison(asking, results, loaded.parts, size, options.seed, questions)
    able = [variant for variant in able if variant.name not in results.problems]
    return {"comparison": compared, "timing": _timing(loaded, asker, able, results, options.timed)}


def _timing(loaded: Loaded, asker: Asker, able: Sequence[Variant], results: Results, timed: int) -> StoredTiming | None:
    items = [answered.item for answered in results.answered[:timed]]
    if not items:
        return None
    runs: list[Timed] = []
    with _bar(len(items), "timing") as bar:
        for some in time_variants(loaded, asker, able, items, TIMED_TOKENS):
            runs += some
            bar.update()
    return timing(runs, TIMED_TOKENS)


def _bar(total: int, what: str) -> tqdm[Any]:
    """Return a progress bar on stderr; nothing where that is no terminal."""
    return tqdm(total=total, desc=what, file=sys.stderr, disable=None, leave=False)


def write(folder: Path, result: StoredComparison, title: str) -> None:
    """Write the numbers, the report and the plot, each whole or not at all.

    Args:
        folder: Where.
        result: ``comparison`` and ``timing``, with ``command`` and ``environment``.
        title: Of the plot.

    Raises:
        OSError: A file cannot be written.
    """
    from vitcop_llava.tools.comparison.plot import draw_tradeoff  # matplotlib takes a while to import

    write_json(folder / RESULT, result)
    write_text(folder / REPORT, markdown(result))
    with write_whole(folder / PLOT) as stream:
        draw_tradeoff(result["comparison"], stream, title)
