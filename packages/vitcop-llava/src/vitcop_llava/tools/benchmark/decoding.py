"""A token of ``generate``, unpruned and pruned: with a dynamic cache, a static one, compiled, and replayed.

Run it as ``python -m vitcop_llava.tools.benchmark.decoding``.

Every variant has a first answer, which compiles what there is to compile, and answers that are timed. Beside them
stands what reading all weights once takes at the rate of a large copy: a token of one prompt cannot be faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import CompileConfig, StoppingCriteria, StoppingCriteriaList

from vitcop_core import Method, ViTCoP
from vitcop_core.files import write_json
from vitcop_llava.compat import CACHE
from vitcop_llava.families import locate
from vitcop_llava.tools.benchmark.commands import command_of
from vitcop_llava.tools.benchmark.prompts import make_prompt
from vitcop_llava.tools.benchmark.run import pruned_by
from vitcop_llava.tools.benchmark.shapes import SHAPES, random_model, weight_bytes
from vitcop_llava.tools.model.environment import environment
from vitcop_llava.tools.model.measuring import cache_bytes, now

TUNED = {"coordinate_descent_tuning": True}
"""What `torch.compile` is asked for where a mode is tuned: the sizes of its kernels' blocks are measured."""

CAPTURED = "captured"
MODES = ("dynamic", "static", "compiled", "tuned", CAPTURED, f"{CAPTURED}-compiled", f"{CAPTURED}-tuned")
"""All but the first have a static cache. What is captured is replayed by vitcop, for a pruned model alone; what is
compiled otherwise, by transformers' settings."""

_COPIED = 2**30
"""Bytes of the copy that tells how fast memory is: so many that launching it takes next to none of its time."""


@dataclass(frozen=True)
class Decoding:
    """One variant.

    Attributes:
        method: None where nothing is pruned.
        mode: One of `MODES`.
        prefill: Seconds to the first token, of every answer.
        token: Seconds of every token after the first two, of all answers.
        token_median: Of them.
        over_floor: Ratio of that to reading the weights once.
        cache_bytes: What the cache holds at the end.
        same_tokens: Whether the answers are those of the first variant with the same method and the same code, as it is
            or compiled alike.
        compiling: Seconds of the first answer, which compiles what there is to compile.
        uncaptured: Why the last token was not replayed; None where it was, or was not to be.
    """

    method: str | None
    mode: str
    prefill: list[float]
    token: list[float]
    token_median: float
    over_floor: float
    cache_bytes: int
    same_tokens: bool
    compiling: float | None = None
    uncaptured: str | None = None


class _Clock(StoppingCriteria):
    """Notes when each token was there, and stops nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times = [now(device)]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.times.append(now(self._device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def measure(
    model: Any, inputs: Mapping[str, Tensor], variants: Sequence[tuple[str | None, Method | None, str]], **given: int
) -> Iterator[Decoding]:
    """Time the variants one after the other, yielding each: what is compiled under one method is none of another's.

    Args:
        model: A model with a language head.
        inputs: What ``generate`` takes.
        variants: Name, method and mode of each.
        given: ``tokens`` of an answer, and ``repeats``, the number of answers.
    """
    # Of the embeddings a token reads a line; they stand for the head, which is as large.
    floor = weight_bytes(model.model.language_model) / _copy_rate(model.device)
    expected = dict[tuple[str | None, str], Tensor]()
    never = model.config.get_text_config().vocab_size  # a word that ends an answer is looked for, as usual
    for name, method, mode in tqdm(variants, desc="variants", file=sys.stderr):
        torch.compiler.reset()
        vars(model).pop("_compiled_call", None)
        prefill, token, answers, held = list[float](), list[float](), list[Tensor](), 0
        captures, compiling = mode.startswith(CAPTURED), 0.0
        with torch.inference_mode(), pruned_by(model, method, capture=captures) as pruner:
            for number in range(given["repeats"] + 1):
                clock = _Clock(model.device)
                output = model.generate(
                    **inputs,
                    **_settings(mode, given["tokens"]),
                    eos_token_id=never,
                    stopping_criteria=StoppingCriteriaList([clock]),
                    return_dict_in_generate=True,
                )
                if number:  # the first compiles
                    steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
                    prefill.append(steps[0])
                    token += steps[2:]
                    answers.append(output.sequences)
                else:
                    compiling = clock.times[-1] - clock.times[0]
                held = cache_bytes(getattr(output, CACHE))
            uncaptured = pruner.uncaptured_token if captures else None
        first = expected.setdefault((name, _code_of(mode)), answers[0])
        same = all(torch.equal(answer, first) for answer in answers)
        median = statistics.median(token)
        yield Decoding(name, mode, prefill, token, median, median / floor, held, same, compiling, uncaptured)


def _code_of(mode: str) -> str:
    """Return how the code of a mode is compiled; nothing where it is not."""
    return mode.rpartition("-")[2] if mode.endswith(("compiled", "tuned")) else ""


def _settings(mode: str, tokens: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False}
    if mode == "dynamic":
        return settings
    settings |= {"cache_implementation": "static", "disable_compile": mode in ("static", CAPTURED)}
    if not settings["disable_compile"]:
        config: Any = CompileConfig()
        if "tuned" in mode:
            config.mode, config.options = None, TUNED | {"triton.cudagraphs": True}
        config._compile_all_devices = True  # on a CPU too
        settings["compile_config"] = config
    return settings


def _copy_rate(device: torch.device) -> float:
    """Return the bytes a second of a large copy, read and written."""
    source = torch.randint(256, (_COPIED,), dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), list[float]()
    for _ in range(8):
        started = now(device)
        target.copy_(source)
        times.append(now(device) - started)
    return 2 * _COPIED / min(times)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and store the result."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.tools.benchmark.decoding", description=__doc__)
    options.add_argument("--shape", choices=sorted(SHAPES), default="llava-1.5-7b")
    options.add_argument("--layers", type=int, help="decoder layers, if not the shape's")
    options.add_argument("--retain", type=float, default=64)
    options.add_argument("--text-tokens", type=int, default=60)
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--tokens", type=int, default=64, help="of an answer")
    options.add_argument("--repeats", type=int, default=3, help="answers")
    options.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES[:3]])
    options.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    shape = SHAPES[args.shape]
    if args.layers is not None:
        shape = replace(shape, language=replace(shape.language, layers=args.layers))
    model = random_model(shape, getattr(torch, args.dtype), args.device)
    prompt = make_prompt(model, locate(model), batch=args.batch, text_tokens=args.text_tokens)
    methods: dict[str | None, Method | None] = {None: None, "ViTCoP": ViTCoP(retained_tokens=args.retain)}
    variants = [
        (name, method, mode)
        for mode in args.modes
        for name, method in methods.items()
        if method is not None or not mode.startswith(CAPTURED)
    ]
    given = {name: value for name, value in vars(args).items() if name != "out" and value is not None}
    command = command_of("decoding", given)
    stored, rows = {"command": command, "environment": environment(), **given}, list[Decoding]()
    for row in measure(model, prompt.inputs, variants, tokens=args.tokens, repeats=args.repeats):
        rows.append(row)
        if args.out is not None:  # as it goes: compiling takes minutes
            write_json(args.out, stored | {"rows": [asdict(each) for each in rows]})
    titles = ("", "how", "to the first", "a token", "of the weights' read", "bytes", "same tokens", "not replayed for")
    shown = Table(*titles, title=command)
    for row in rows:
        seconds = (statistics.median(row.prefill), row.token_median)
        cells = (*(f"{1e3 * each:.4g} ms" for each in seconds), f"{row.over_floor:.2f}", f"{row.cache_bytes:,}")
        same = "yes" if row.same_tokens else "no"
        shown.add_row(row.method or "unpruned", row.mode, *cells, same, row.uncaptured or "")
    Console(width=140).print(shown)


if __name__ == "__main__":
    main()
