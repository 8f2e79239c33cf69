"""How well the demo video model answers, unpruned and pruned: ``python -m vitcop_video.demo.evaluate``.

Held-out clips (their seeds are below every training seed), one question a clip, the kinds taking turns, greedy answers
that have to match to the letter. The result goes to the terminal as a table, and to a JSON file with what it takes to
make it again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import LlavaNextVideoForConditionalGeneration

from vitcop_core import ViTCoP, identity_plan
from vitcop_core.files import write_json
from vitcop_llava.pruner import prune
from vitcop_video.demo import DEMO_FOLDER
from vitcop_video.demo.events import FRAMES, render_clip, sample_clip
from vitcop_video.demo.questions import KINDS, ClipQuestion, held_out
from vitcop_video.machine import command_line, environment
from vitcop_video.processing import ClipProcessor

BUDGETS = (Fraction(1), Fraction(1, 3), Fraction(1, 9), Fraction(1, 18))
LONGEST_ANSWER = 8

_TEMPORAL: dict[str, dict[str, Any]] = {
    "": {},
    ", change_share=1/2": {"change_share": Fraction(1, 2)},
    ", cluster_frames=8": {"cluster_frames": 8},
    ", both": {"change_share": Fraction(1, 2), "cluster_frames": 8},
}
_LAYERS: dict[str, dict[str, Any]] = {"layers 2 and 6": {"layers": (2, 6)}, "layers 1 and 6": {}}
_TUNED: dict[str, Any] = {"cluster_frames": 8, "cutoff_distance": 16.0, "spatial_threshold": 0.3}
VARIANTS = {layers + how: _LAYERS[layers] | _TEMPORAL[how] for layers in _LAYERS for how in _TEMPORAL} | {
    "layers 1 and 6, cluster_frames=8, tuned": _TUNED
}
"""Where the cuts are, and what is done with time.

Layers 1 and 6 are the default: the paper's fractions of the depth. Two layers before the first cut, as many as in the
paper, are a quarter of this model, and leave an eighteenth of the tokens out of reach. "Tuned" were thresholds of the
clustering, on clips that are neither held out nor trained on.
"""


@dataclass(frozen=True)
class VariantScore:
    """Exact answers of one variant at one budget.

    Attributes:
        variant: a key of `VARIANTS`, or "unpruned".
        retention_ratio: the budget, as a fraction.
        tokens_per_layer: visual tokens at each layer's input.
        average_tokens: their mean.
        questions, right: by kind of question.
        unreachable: why the variant cannot meet the budget, where it cannot; then nothing was asked.
    """

    variant: str
    retention_ratio: str
    tokens_per_layer: tuple[int, ...] = ()
    average_tokens: float = 0.0
    questions: dict[str, int] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    unreachable: str | None = None

    def accuracy(self, kind: str | None = None) -> float:
        """Share of right answers to one kind of question, or to all; NaN where none was asked."""
        kinds = KINDS if kind is None else (kind,)
        asked = sum(self.questions[k] for k in kinds)
        return sum(self.right[k] for k in kinds) / asked if asked else float("nan")


class Answerer:
    """Asks a demo video model about rendered clips, many at a time."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.model: Any = LlavaNextVideoForConditionalGeneration.from_pretrained(folder).eval()
        self.model.to(device)
        self.processor = ClipProcessor.from_pretrained(str(folder))
        self.tokens_per_frame = self.processor.tokens_per_frame

    def answers(self, asked: list[ClipQuestion], batch: int) -> Iterator[str]:
        """Yield the greedy answer to each question."""
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            inputs = self.processor(
                [self.prompt(item.text) for item in part],
                videos=[render_clip(sample_clip(item.seed)) for item in part],
                padding=True,
            ).to(self.model.device)
            output = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            words = output[:, inputs["input_ids"].shape[1] :]
            yield from (text.strip() for text in self.processor.tokenizer.batch_decode(words, skip_special_tokens=True))

    def prompt(self, question: str) -> str:
        """Return the prompt of a question about one clip."""
        content = [{"type": "video"}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(chat, add_generation_prompt=True))


@dataclass(frozen=True)
class Job:
    """One variant at one budget; ratio 1 is the unpruned model."""

    folder: Path
    device: str
    clips: int
    batch: int
    variant: str
    budget: Fraction


@cache
def _answerer(folder: Path, device: str) -> Answerer:
    return Answerer(folder, device)


def score(job: Job) -> VariantScore:
    """Ask every question."""
    answerer, asked = _answerer(job.folder, job.device), held_out(job.clips)
    layers, units = answerer.model.config.text_config.num_hidden_layers, (answerer.tokens_per_frame,) * FRAMES
    method = None if job.budget == 1 else ViTCoP(retention_ratio=job.budget, **VARIANTS[job.variant])
    try:
        plan = identity_plan(layers, units) if method is None else method.plan(layers, units)
    except ValueError as error:
        return VariantScore(job.variant, str(job.budget), unreachable=str(error))
    questions, right = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    with torch.inference_mode(), nullcontext() if method is None else prune(answerer.model, method):
        for item, answer in zip(asked, answerer.answers(asked, job.batch), strict=True):
            questions[item.kind] += 1
            right[item.kind] += answer == item.answer
    return VariantScore(
        job.variant, str(job.budget), plan.tokens_per_layer, float(plan.average_tokens), questions, right
    )


def scores_of(jobs: list[Job], workers: int) -> Iterator[VariantScore]:
    """Yield the scores in the order of the jobs; with several workers one thread and one model each."""
    if workers == 1:
        yield from map(score, jobs)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(score, jobs)


def table(scores: list[VariantScore], clips: int) -> Table:
    """Return the scores, a line for each variant and budget."""
    shown = Table("variant", "kept", "tokens", *KINDS, "all", title=f"exact answers on {clips} held-out clips")
    for row in scores:
        if row.unreachable is not None:
            shown.add_row(row.variant, row.retention_ratio, "out of reach")
            continue
        cells = [f"{row.accuracy(kind):.1%}" for kind in (*KINDS, None)]
        shown.add_row(row.variant, row.retention_ratio, f"{row.average_tokens:.4g}", *cells)
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Evaluate and stores."""
    options = argparse.ArgumentParser(prog="python -m vitcop_video.demo.evaluate", description=__doc__)
    options.add_argument("--model", type=Path, default=DEMO_FOLDER, help="folder of the demo video model")
    options.add_argument("--clips", type=int, default=1000)
    options.add_argument("--budgets", type=Fraction, nargs="+", default=list(BUDGETS))
    options.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options.add_argument("--batch", type=int, default=10)
    options.add_argument("--device", default="cpu")
    options.add_argument("--workers", type=int, default=1, help="settings that are asked at a time, each in a process")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    wanted = [("unpruned", Fraction(1))] if 1 in args.budgets else []
    wanted += [(name, budget) for budget in args.budgets if budget != 1 for name in args.variants]
    jobs = [Job(args.model, args.device, args.clips, args.batch, name, budget) for name, budget in wanted]
    command = command_line("vitcop_video.demo.evaluate", arguments)
    result: dict[str, Any] = {"command": command, "environment": environment(), "clips": args.clips}
    scores = []
    for found in tqdm(scores_of(jobs, args.workers), total=len(jobs), desc="settings", file=sys.stderr):
        scores.append(found)
        if args.out is not None:  # after each, so that a stop leaves what there is
            result["scores"] = [asdict(row) for row in scores]
            write_json(args.out, result)
    Console(width=140).print(table(scores, args.clips))


if __name__ == "__main__":
    main()
