"""How well the demo model answers, unpruned and pruned: ``python -m vitcop_llava.demo.evaluate``.

Held-out scenes (their seeds are below every training seed), one question of each kind a scene, greedy answers that have
to match to the letter. The result goes to the terminal as a table, and to a JSON file with what it takes to make it
again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vitcop_core import ViTCoP, identity_plan
from vitcop_llava.answer import build_prompt
from vitcop_llava.demo.questions import KINDS, sample_questions
from vitcop_llava.demo.scenes import render, sample_scene
from vitcop_llava.environment import environment
from vitcop_llava.loading import DEMO_FOLDER
from vitcop_llava.pruner import prune

BUDGETS = (Fraction(1), Fraction(1, 3), Fraction(2, 9), Fraction(1, 9), Fraction(1, 18))
LONGEST_ANSWER = 4

VARIANTS: dict[str, dict[str, Any]] = {
    "ViTCoP": {},
    "attention instead of K-norm": {"saliency": "attention"},
    "K-norm alone": {"clustering": False},
    "without Stage I": {"stage_one": False},
    "without Stage III": {"stage_three": False},
    "cuts before layers 1 and 6": {"layers": (1, 6)},
    "released code's behaviour": {"compat": "official"},
}
"""The method, its ablations (the paper's Tables 4 and 7), and the released code's reading of it.

Two layers before the first cut are a sixteenth of a 32-layer model and a quarter of this one: so much is spent there
that an eighteenth of the tokens is out of the default layers' reach. One layer is as near as it gets to the paper's
share.
"""


@dataclass(frozen=True)
class Asked:
    """A question about a held-out scene."""

    seed: int
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Score:
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
        """Share of right answers to one kind of question, or to all."""
        kinds = KINDS if kind is None else (kind,)
        return sum(self.right[k] for k in kinds) / sum(self.questions[k] for k in kinds)


def held_out(scenes: int) -> list[Asked]:
    """One question of each kind for each of the first ``scenes`` scenes, where the scene has one of that kind."""
    asked = []
    for seed in range(scenes):
        scene, rng = sample_scene(seed), np.random.default_rng([seed, 2])
        for kind in KINDS:
            asked += [Asked(seed, kind, q.text, q.answer) for q in sample_questions(scene, kind, 1, rng)]
    return asked


class Answerer:
    """Asks a demo model about rendered scenes, many at a time."""

    def __init__(self, folder: Path, device: str) -> None:
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
        self.model.to(device)
        self.processor = AutoProcessor.from_pretrained(folder)
        self.side = self.model.config.vision_config.image_size

    def answers(self, asked: list[Asked], batch: int) -> Iterator[str]:
        """The greedy answer to each question."""
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            inputs = self.processor(
                images=[render(sample_scene(item.seed), self.side) for item in part],
                text=[build_prompt(self.processor, ["image"], item.text) for item in part],
                padding=True,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            words = output[:, inputs["input_ids"].shape[1] :]
            yield from self.processor.batch_decode(words, skip_special_tokens=True)


def score(answerer: Answerer, asked: list[Asked], variant: str, budget: Fraction, batch: int) -> Score:
    """Asks every question under one variant and budget; ratio 1 is the unpruned model."""
    config = answerer.model.config
    layers, visual = config.text_config.num_hidden_layers, config.image_seq_length
    method = None if budget == 1 else ViTCoP(retention_ratio=budget, **VARIANTS[variant])
    try:
        plan = identity_plan(layers, (visual,)) if method is None else method.plan(layers, visual)
    except ValueError as error:
        return Score(variant, str(budget), unreachable=str(error))
    questions, right = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    with nullcontext() if method is None else prune(answerer.model, method):
        answers = tqdm(answerer.answers(asked, batch), total=len(asked), desc=f"{variant}, {budget}", file=sys.stderr)
        for item, answer in zip(asked, answers, strict=True):
            questions[item.kind] += 1
            right[item.kind] += answer.strip() == item.answer
    name = "unpruned" if method is None else variant
    return Score(name, str(budget), plan.tokens_per_layer, float(plan.average_tokens), questions, right)


def table(scores: list[Score], scenes: int) -> Table:
    """The scores, a line for each variant and budget."""
    shown = Table("variant", "kept", "tokens", *KINDS, "all", title=f"exact answers on {scenes} held-out scenes")
    for row in scores:
        if row.unreachable is not None:
            shown.add_row(row.variant, row.retention_ratio, "out of reach")
            continue
        cells = [f"{row.accuracy(kind):.1%}" for kind in (*KINDS, None)]
        shown.add_row(row.variant, row.retention_ratio, f"{row.average_tokens:.4g}", *cells)
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Evaluates and stores."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.demo.evaluate", description=__doc__)
    options.add_argument("--model", type=Path, default=DEMO_FOLDER, help="folder of the demo model")
    options.add_argument("--scenes", type=int, default=2000)
    options.add_argument("--budgets", type=Fraction, nargs="+", default=list(BUDGETS))
    options.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options.add_argument("--batch", type=int, default=50)
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    answerer, asked = Answerer(args.model, args.device), held_out(args.scenes)
    wanted = [(name, budget) for name in args.variants for budget in args.budgets if budget != 1]
    if 1 in args.budgets:
        wanted.insert(0, ("ViTCoP", Fraction(1)))
    with torch.inference_mode():
        scores = [score(answerer, asked, name, budget, args.batch) for name, budget in wanted]
    if args.out is not None:
        shown = ["python -m vitcop_llava.demo.evaluate", f"--scenes {args.scenes}"]
        shown += ["--budgets", *map(str, args.budgets), "--variants", *(f'"{name}"' for name in args.variants)]
        result = {
            "command": " ".join(shown),
            "environment": environment(),
            "scenes": args.scenes,
            "visual_tokens": answerer.model.config.image_seq_length,
            "scores": [asdict(row) for row in scores],
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    Console(width=120).print(table(scores, args.scenes))


if __name__ == "__main__":
    main()
