"""How well the demo model answers, unpruned and pruned: ``python -m vitcop_llava.demo.evaluate``.

Held-out scenes (their seeds are below every training seed), one question of each kind a scene, greedy answers that have to
match to the letter. The result goes to a JSON file with everything needed to make it again, and to the terminal as a
table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration
from vitcop_core import ViTCoP

from vitcop_llava.demo.questions import KINDS, sample_questions
from vitcop_llava.demo.scenes import render, sample_scene
from vitcop_llava.environment import environment
from vitcop_llava.prune import prune

WEIGHTS = Path(__file__).parent / "weights"
BUDGETS = (Fraction(1), Fraction(1, 3), Fraction(2, 9), Fraction(1, 9), Fraction(1, 18))
LONGEST_ANSWER = 4

VARIANTS: dict[str, dict[str, object]] = {
    "ViTCoP": {},
    "attention instead of K-norm": {"saliency": "attention"},
    "K-norm alone": {"clustering": False},
    "without Stage I": {"stage_one": False},
    "without Stage III": {"stage_three": False},
    "released code's behaviour": {"compat": "official"},
}
"""The method, its ablations (the paper's Table 4), and the released code's reading of it."""


@dataclass(frozen=True)
class Asked:
    """A question about a held-out scene."""

    seed: int
    kind: str
    text: str
    answer: str


def held_out(scenes: int) -> list[Asked]:
    """One question of each kind for each of the first ``scenes`` scenes; a kind that a scene has none of is left out."""
    asked = []
    for seed in range(scenes):
        scene, rng = sample_scene(seed), np.random.default_rng([seed, 2])
        for kind in KINDS:
            asked += [Asked(seed, kind, q.text, q.answer) for q in sample_questions(scene, kind, 1, rng)]
    return asked


class Answerer:
    """Asks a demo model about rendered scenes, many at a time."""

    def __init__(self, folder: Path, device: str) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.side = self.model.config.vision_config.image_size

    def answers(self, asked: list[Asked], batch: int) -> Iterator[str]:
        """The greedy answer to each question."""
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            inputs = self.processor(
                images=[render(sample_scene(item.seed), self.side) for item in part],
                text=[f"USER: <image>\n{item.text} ASSISTANT:" for item in part],
                padding=True,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            words = output[:, inputs["input_ids"].shape[1] :]
            yield from self.processor.batch_decode(words, skip_special_tokens=True)


def score(answerer: Answerer, asked: list[Asked], method: ViTCoP | None, batch: int, title: str) -> dict[str, object]:
    """Exact answers by kind, with the plan that they were given under."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    with nullcontext() if method is None else prune(answerer.model, method):
        answers = tqdm(answerer.answers(asked, batch), total=len(asked), desc=title, file=sys.stderr)
        for item, answer in zip(asked, answers, strict=True):
            right[item.kind].append(answer.strip() == item.answer)
    every = [value for values in right.values() for value in values]
    result: dict[str, object] = {
        "questions": {kind: len(values) for kind, values in right.items()},
        "right": {kind: sum(values) for kind, values in right.items()},
        "accuracy": {kind: sum(values) / len(values) for kind, values in right.items()},
        "overall": sum(every) / len(every),
    }
    if method is not None:
        config = answerer.model.config
        plan = method.plan(config.text_config.num_hidden_layers, config.image_seq_length)
        result["tokens_per_layer"] = plan.tokens_per_layer
        result["average_tokens"] = float(plan.average_tokens)
    return result


def evaluate(args: argparse.Namespace) -> dict[str, object]:
    """Scores every variant at every budget that it can reach."""
    answerer, asked = Answerer(args.model, args.device), held_out(args.scenes)
    results = []
    for name in args.variants:
        for budget in args.budgets:
            if budget == 1 and name != "ViTCoP":
                continue
            row: dict[str, object] = {"variant": name, "retention_ratio": str(budget)}
            try:
                method = None if budget == 1 else ViTCoP(retention_ratio=budget, **VARIANTS[name])  # type: ignore[arg-type]
                row |= score(answerer, asked, method, args.batch, f"{name}, {budget}")
            except ValueError as error:
                row["unreachable"] = str(error)
            results.append(row)
    return {
        "command": "python -m vitcop_llava.demo.evaluate " + f"--scenes {args.scenes}",
        "environment": environment(),
        "scenes": args.scenes,
        "visual_tokens": answerer.model.config.image_seq_length,
        "results": results,
    }


def table(result: dict[str, object], console: Console) -> None:
    """Prints a result as a table, a line for each variant and budget."""
    shown = Table("variant", "kept", "tokens", *KINDS, "all", title=f"exact answers on {result['scenes']} held-out scenes")
    for row in result["results"]:  # type: ignore[attr-defined]
        if "unreachable" in row:
            shown.add_row(row["variant"], row["retention_ratio"], "out of reach")
            continue
        name = "unpruned" if row["retention_ratio"] == "1" else row["variant"]
        tokens = row.get("average_tokens", result["visual_tokens"])
        cells = [f"{row['accuracy'][kind]:.1%}" for kind in KINDS]
        shown.add_row(name, row["retention_ratio"], f"{tokens:g}", *cells, f"{row['overall']:.1%}")
    console.print(shown)


def main(arguments: list[str] | None = None) -> None:
    """Evaluates and stores."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.demo.evaluate", description=__doc__)
    options.add_argument("--model", type=Path, default=WEIGHTS, help="folder of the demo model")
    options.add_argument("--scenes", type=int, default=2000)
    options.add_argument("--budgets", type=Fraction, nargs="+", default=list(BUDGETS))
    options.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options.add_argument("--batch", type=int, default=50)
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    result = evaluate(args)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    table(result, Console(width=120))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
