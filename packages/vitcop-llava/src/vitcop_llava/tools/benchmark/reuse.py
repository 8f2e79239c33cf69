"""Ten questions about one image on its prefix, beside one question as usual.

Run it as ``python -m vitcop_llava.tools.benchmark.reuse``.

Shapes, weights and prompts are those of ``vitcop bench``. *Reuse* is everything that the questions cost together:
the prefix is encoded anew in every round, and answers all questions as one batch. It is compared with a single question
asked in one piece, pruned likewise, and with the same unpruned; neither has anything to reuse.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from vitcop_core import ViTCoP
from vitcop_core.files import write_json
from vitcop_llava.families import locate
from vitcop_llava.prefix.image_prefix import ImagePrefix, encode_image
from vitcop_llava.pruner import prune
from vitcop_llava.tools.benchmark.commands import command_of
from vitcop_llava.tools.benchmark.prompts import TEXT_BEFORE, make_prompt
from vitcop_llava.tools.benchmark.shapes import SHAPES, random_model
from vitcop_llava.tools.model.environment import environment
from vitcop_llava.tools.model.measuring import now


@dataclass(frozen=True)
class ReuseSizes:
    """What is asked: how many questions of how many tokens, and how many tokens each answer has."""

    questions: int
    question_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class ReuseResult:
    """One run.

    Attributes:
        sizes: What was asked.
        retained_tokens: The budget.
        visual_tokens, text_before: Of the prefix.
        unpruned, pruned: Seconds of one question asked in one piece, every repeat.
        encode, answer: Seconds of the two parts of reuse: the prefix, and all questions on it.
        reuse: Their sums.
        over_pruned, over_unpruned: Ratios of medians: all questions by reuse to one asked in one piece.
    """

    sizes: ReuseSizes
    retained_tokens: int
    visual_tokens: int
    text_before: int
    unpruned: list[float]
    pruned: list[float]
    encode: list[float]
    answer: list[float]
    reuse: list[float]
    over_pruned: float
    over_unpruned: float


def measure(model: LlavaForConditionalGeneration, retain: int, sizes: ReuseSizes, repeats: int) -> ReuseResult:
    """Time one question unpruned, one pruned, and all of them by reuse, in turn, after one round to warm up."""
    prompt = make_prompt(model, locate(model))
    given, visual = prompt.inputs, prompt.tiling.tokens
    runs = _runs(model, given["input_ids"][:, : TEXT_BEFORE + visual], given["pixel_values"], retain, sizes)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for repeat in tqdm(range(repeats + 1), desc="rounds", file=sys.stderr):
            for name, run in runs.items():
                started = now(model.device)
                run()
                seconds = now(model.device) - started
                if repeat:
                    times[name].append(seconds)
    reuse = [sum(parts) for parts in zip(times["encode"], times["answer"], strict=True)]
    median = {name: statistics.median(seconds) for name, seconds in [*times.items(), ("reuse", reuse)]}
    return ReuseResult(
        sizes,
        retained_tokens=retain,
        visual_tokens=visual,
        text_before=TEXT_BEFORE,
        unpruned=times["unpruned"],
        pruned=times["pruned"],
        encode=times["encode"],
        answer=times["answer"],
        reuse=reuse,
        over_pruned=median["reuse"] / median["pruned"],
        over_unpruned=median["reuse"] / median["unpruned"],
    )


def _runs(
    model: LlavaForConditionalGeneration, beginning: Tensor, pixels: Tensor, retain: int, sizes: ReuseSizes
) -> dict[str, Callable[[], object]]:
    """Return what is timed, in an order in which each finds what it needs."""
    generator = torch.Generator().manual_seed(2)
    questions = torch.randint(3, 31000, (sizes.questions, sizes.question_tokens), generator=generator)
    whole = torch.cat([beginning, questions[:1].to(model.device)], dim=1)
    alone = {"input_ids": whole, "attention_mask": torch.ones_like(whole), "pixel_values": pixels}
    method, prefixes = ViTCoP(retained_tokens=retain), list[ImagePrefix]()
    answering: Any = model  # its method is annotated for a protocol of its own

    def generate(inputs: dict[str, Any]) -> None:
        # Random weights may end an answer at once.
        how = {"max_new_tokens": sizes.new_tokens, "min_new_tokens": sizes.new_tokens, "do_sample": False}
        answering.generate(**inputs, **how)

    def pruned() -> None:
        with prune(model, method):
            generate(alone)

    def encode() -> None:
        prefixes[:] = [encode_image(model, beginning, pixels, method=method)]

    def answer() -> None:
        with prune(model, method):
            generate(prefixes[0].inputs(questions))

    return {"unpruned": lambda: generate(alone), "pruned": pruned, "encode": encode, "answer": answer}


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, and stores the result."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.tools.benchmark.reuse", description=__doc__)
    shapes = [name for name, shape in SHAPES.items() if shape.family == "llava"]
    options.add_argument("--shape", choices=shapes, default="llava-1.5-7b")
    options.add_argument("--retain", type=int, default=64)
    options.add_argument("--questions", type=int, default=10)
    options.add_argument("--question-tokens", type=int, default=20)
    options.add_argument("--new-tokens", type=int, default=8)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    sizes = ReuseSizes(args.questions, args.question_tokens, args.new_tokens)
    model = random_model(SHAPES[args.shape], getattr(torch, args.dtype), args.device)
    result = measure(model, args.retain, sizes, args.repeats)
    named = ("shape", "retain", "questions", "question_tokens", "new_tokens", "dtype", "repeats")
    command = command_of("reuse", {name: getattr(args, name) for name in named})
    if args.out is not None:
        stored = {"command": command, "environment": environment(), "shape": args.shape, "dtype": args.dtype}
        write_json(args.out, stored | asdict(result))
    shown = Table("", "seconds", "of one pruned", "of one unpruned", title=command)
    rows = {
        "one question, unpruned": result.unpruned,
        "one question, pruned": result.pruned,
        f"{sizes.questions} questions, reuse": result.reuse,
        "  of which the image": result.encode,
        "  of which the questions": result.answer,
    }
    bases = [statistics.median(result.pruned), statistics.median(result.unpruned)]
    for name, seconds in rows.items():
        median = statistics.median(seconds)
        shown.add_row(name, f"{median:.3g}", *(f"{median / base:.2f}" for base in bases))
    Console(width=110).print(shown)


if __name__ == "__main__":
    main()
