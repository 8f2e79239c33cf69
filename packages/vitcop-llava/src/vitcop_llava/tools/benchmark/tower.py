"""The vision tower under pruning beside the unpruned one: ``python -m vitcop_llava.tools.benchmark.tower``.

CLIP ViT-L/14 at 336 pixels with random weights, in a LLaVA whose language model is narrow and has the depth of the 7B.
All variants take turns in each round, in an order that differs by round. *Tower* is the tower's forward; *encoding* is
all from pixels to projected features, Stage I included.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vitcop_core import Method
from vitcop_core.files import write_json
from vitcop_core.presets import equal_budgets
from vitcop_llava.families import Parts, locate
from vitcop_llava.tools.benchmark.breakdown import clock
from vitcop_llava.tools.benchmark.commands import command_of
from vitcop_llava.tools.benchmark.prompts import BenchPrompt, make_prompt
from vitcop_llava.tools.benchmark.rounds import interleave
from vitcop_llava.tools.benchmark.run import pruned_by
from vitcop_llava.tools.benchmark.shapes import Language, Shape, Vision, random_model
from vitcop_llava.tools.model.environment import environment

_NARROW = Language(hidden=256, intermediate=512, layers=32, heads=4, kv_heads=4)
_TOWERS = {
    "large": Vision(),
    "small": Vision(hidden=64, intermediate=128, layers=3, heads=4),
}
_METHODS = ("ViTCoP", "VisionZip", "FastV")


@dataclass(frozen=True)
class TowerTimes:
    """One variant in one dtype.

    Attributes:
        method: None where nothing is pruned.
        dtype: Of weights and pixels.
        tower, encoding: Seconds of every round.
        over_unpruned: Ratios of medians to the unpruned of the same dtype: of the tower, and of the encoding.
    """

    method: str | None
    dtype: str
    tower: list[float]
    encoding: list[float]
    over_unpruned: dict[str, float]


def measure(
    vision: Vision, dtype: str, methods: Mapping[str, Method], *, images: int, rounds: int, device: str = "cpu"
) -> list[TowerTimes]:
    """Time the tower unpruned and under each method, in turn, after one round to warm up."""
    model = random_model(Shape("llava", vision, _NARROW), getattr(torch, dtype), device)
    parts = locate(model)
    prompt = make_prompt(model, parts, batch=images)
    variants: dict[str | None, Method | None] = {None: None}
    variants.update(methods.items())
    runs = {name: partial(_seconds, model, parts, prompt, method) for name, method in variants.items()}
    found = interleave([runs], repeats=rounds, seed=0, what=f"rounds in {dtype}").found
    times = {
        name: {part: [each[part] for each in own] for part in ("tower", "encoding")} for name, own in found.items()
    }
    medians = {name: {part: statistics.median(own[part]) for part in own} for name, own in times.items()}
    return [
        TowerTimes(name, dtype, **own, over_unpruned={part: medians[name][part] / medians[None][part] for part in own})
        for name, own in times.items()
    ]


def _seconds(model: Any, parts: Parts, prompt: BenchPrompt, method: Method | None) -> dict[str, float]:
    spent = {"tower": 0.0, "encoding": 0.0}
    device = prompt.inputs["input_ids"].device
    with (
        torch.inference_mode(),
        pruned_by(model, method),
        clock(parts.vision_tower, "tower", spent, device),
        clock(parts.base, "encoding", spent, device, method="get_image_features"),
    ):
        model(**prompt.inputs, use_cache=True, logits_to_keep=1)
    return spent


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and store the result."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.tools.benchmark.tower", description=__doc__)
    options.add_argument("--tower", choices=[*_TOWERS], default="large")
    options.add_argument("--retain", type=int, default=64)
    options.add_argument("--images", type=int, default=1)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--dtype", nargs="+", choices=["bfloat16", "float16", "float32"])
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    methods = {name: equal_budgets(args.retain)[name] for name in _METHODS}
    results = []
    for dtype in (dtypes := args.dtype or ["bfloat16", "float32"]):
        given = {"images": args.images, "rounds": args.rounds, "device": args.device}
        results += measure(_TOWERS[args.tower], dtype, methods, **given)
    named = {name: getattr(args, name) for name in ("tower", "retain", "images", "rounds")}
    command = command_of("tower", named | {"dtype": dtypes, "device": args.device})
    if args.out is not None:
        settings = {"tower": asdict(_TOWERS[args.tower]), "retained_tokens": args.retain, "images": args.images}
        rows = [asdict(result) for result in results]
        write_json(args.out, {"command": command, "environment": environment(), **settings, "rows": rows})
    shown = Table("", "dtype", "tower (ms)", "of unpruned", "encoding (ms)", "of unpruned", title=command)
    for result in results:
        cells = [result.method or "unpruned", result.dtype]
        for part, seconds in (("tower", result.tower), ("encoding", result.encoding)):
            cells += [f"{1000 * statistics.median(seconds):.4g}", f"{result.over_unpruned[part]:.3f}"]
        shown.add_row(*cells)
    Console(width=110).print(shown)


if __name__ == "__main__":
    main()
