"""Many questions to the demo model: `vitcop batch`'s way beside a plain loop of transformers, in one run.

Run it as ``python -m vitcop_llava.tools.benchmark.many``.

Each round answers the same questions about the same files in every way, one after the other. Reading the files,
preparing the inputs, generating, decoding and, where answers go to a file, writing them counts; loading the model does
not. The loop opens a picture, prepares and generates, question by question, as transformers' documentation does. Every
way has the same number of torch's threads; batches are read in one thread more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vitcop_core import Method, ViTCoP
from vitcop_core.files import write_json
from vitcop_core.journal import Journal
from vitcop_llava.tools.batch.answerer import Answerer
from vitcop_llava.tools.batch.rows import Row
from vitcop_llava.tools.benchmark.commands import command_of
from vitcop_llava.tools.comparison.questions import scene_images, scene_questions
from vitcop_llava.tools.model.answer import build_prompt
from vitcop_llava.tools.model.environment import environment
from vitcop_llava.tools.model.loading import Loaded, load

Answers = list[str | None]


@dataclass(frozen=True)
class Way:
    """One way of answering.

    Attributes:
        name: What it is.
        batch_size: Questions at a time; None for the plain loop.
        retain: The share of visual tokens that is kept; None where nothing is pruned.
        threads: Of torch.
        seconds: Of each round.
        speedup: Median over the rounds of the loop's seconds over its own.
        same_as_loop: The share of answers that are the loop's.
        right: The share of answers that are right.
    """

    name: str
    batch_size: int | None
    retain: str | None
    threads: int
    seconds: list[float]
    speedup: float
    same_as_loop: float
    right: float


def plain_loop(loaded: Loaded, rows: Sequence[Row], longest: int) -> Answers:
    """Answer one question after the other with transformers alone."""
    model, processor, answers = loaded.model, loaded.processor, Answers()
    for row in rows:
        with Image.open(row.media[0]) as picture:
            image = picture.convert("RGB")
        prompt = build_prompt(processor, ["image"], row.question)
        inputs = processor(images=[image], text=prompt, return_tensors="pt").to(loaded.device, loaded.dtype)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        words = output[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(words, skip_special_tokens=True).strip())
    return answers


def batched(
    loaded: Loaded, rows: Sequence[Row], longest: int, batch_size: int, method: Method | None, folder: Path
) -> Answers:
    """Answer as `vitcop batch` does in one process; the answers go to a file in a folder."""
    found = dict[int, str | None]()
    with (
        Answerer(loaded, method, batch_size=batch_size, max_new_tokens=longest) as answerer,
        Journal(folder / "answers.jsonl") as journal,
    ):
        for outcomes in answerer.stream(dict(enumerate(rows))):
            journal.add(*({"line": number} | asdict(outcome) for number, outcome in outcomes.items()))
            found |= {number: outcome.answer for number, outcome in outcomes.items()}
        journal.finish()
    return [found[number] for number in range(len(rows))]


def draw(folder: Path, count: int, side: int) -> tuple[list[Row], list[str]]:
    """Draw held-out scenes into a folder; return questions about them, and the right answers."""
    rows, right, seed = list[Row](), list[str](), 0
    while len(rows) < count:
        path = folder / f"{seed}.png"
        scene_images(seed, side)[0].save(path)
        for item in scene_questions(seed):
            rows.append(Row((path,), item.question))
            right.append(item.answers[0])
        seed += 1
    return rows[:count], right[:count]


def measure(
    loaded: Loaded, folder: Path, count: int, batch_size: int, share: str, threads: int, rounds: int
) -> list[Way]:
    """Time every way in every round, after a round of few questions to warm up."""
    torch.set_num_threads(threads)
    tower: Any = loaded.parts.vision_tower
    rows, right = draw(folder, count, tower.config.image_size)
    longest, method = 8, ViTCoP(retention_ratio=Fraction(share))

    def by(size: int, settings: Method | None) -> Callable[[Sequence[Row]], Answers]:
        return lambda asked: batched(loaded, asked, longest, size, settings, folder)

    ways: dict[tuple[str, int | None, str | None], Callable[[Sequence[Row]], Answers]] = {
        ("transformers, one by one", None, None): lambda asked: plain_loop(loaded, asked, longest),
        ("unpruned", batch_size, None): by(batch_size, None),
        ("pruned, one by one", 1, share): by(1, method),
        ("pruned", batch_size, share): by(batch_size, method),
    }
    seconds, answers = {key: list[float]() for key in ways}, dict[Any, Answers]()
    for number in range(rounds + 1):
        for key, run in ways.items():
            began = time.perf_counter()
            answers[key] = run(rows if number else rows[:batch_size])
            if number:
                seconds[key].append(time.perf_counter() - began)
    (first, *_) = ways
    found = []
    for key, own in seconds.items():
        speedup = statistics.median(loop / each for loop, each in zip(seconds[first], own, strict=True))
        same = _share(answers[key], answers[first])
        found.append(Way(*key, threads, own, speedup, same, _share(answers[key], right)))
    return found


def _share(found: Sequence[str | None], wanted: Sequence[str | None]) -> float:
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and store the result."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.tools.benchmark.many", description=__doc__)
    options.add_argument("--questions", type=int, default=320)
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--retain", default="1/9", help="the share of visual tokens that is kept")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch; each number in turn")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(device=args.device)
        sizes = (args.questions, args.batch_size, args.retain)
        ways = [way for threads in args.threads for way in measure(loaded, Path(folder), *sizes, threads, args.rounds)]
    given = {name: value for name, value in vars(args).items() if name != "out"}
    command = command_of("many", given)
    if args.out is not None:
        stored = {"command": command, "environment": environment(), **given}
        write_json(args.out, stored | {"rows": [asdict(way) for way in ways]})
    headings = ("", "a batch", "threads", "questions a second", "times the loop", "as the loop", "right")
    shown = Table(*headings, title=command)
    for way in ways:
        rate = args.questions / statistics.median(way.seconds)
        cells = (f"{rate:.1f}", f"{way.speedup:.2f}", f"{way.same_as_loop:.1%}", f"{way.right:.1%}")
        shown.add_row(way.name, str(way.batch_size or 1), str(way.threads), *cells)
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
