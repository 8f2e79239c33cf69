"""Decoder layers of a pruned prefill beside bare ones of the same length.

Run it as ``python -m vitcop_llava.tools.benchmark.layers``.

Behind a cut a layer must cost what it costs at that length without a pruner. So every layer is timed twice in one
prefill: as the prefill calls it, and right before or after that (in turn by round) as a bare layer is called: on hidden
states, rotations and a cache of its own. The two stand next to each other in time, and what slows the machine for a
while slows both. vitcop's hooks are in neither: what they do at a cut is no layer's work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers.cache_utils import DynamicCache

from vitcop_core import Method, ViTCoP
from vitcop_core.files import write_json
from vitcop_llava.compat import CACHE
from vitcop_llava.families import Parts, locate
from vitcop_llava.pruner import prune
from vitcop_llava.sequence.masks import segment_mask
from vitcop_llava.tools.benchmark.commands import command_of
from vitcop_llava.tools.benchmark.prompts import BenchPrompt, make_prompt
from vitcop_llava.tools.benchmark.shapes import SHAPES, FlatVision, Shape, random_model
from vitcop_llava.tools.model.environment import environment
from vitcop_llava.tools.model.measuring import now


@dataclass(frozen=True)
class LayerTimes:
    """One decoder layer.

    Attributes:
        layer: Its index.
        tokens: What it runs on, text included.
        pruned, bare: Seconds in the prefill and of the bare layer, every round.
        ratio: Median of the rounds' ratios of the two.
    """

    layer: int
    tokens: int
    pruned: list[float]
    bare: list[float]
    ratio: float


class _Clock:
    """Time the layers of a prefill, and bare ones beside them."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._started, self.round = parts, 0.0, 0
        count = len(parts.decoder_layers)
        self.pruned: list[list[float]] = [[] for _ in range(count)]
        self.bare: list[list[float]] = [[] for _ in range(count)]
        self.tokens = [0] * count

    def attach(self) -> Iterator[RemovableHandle]:
        """Register the hooks, yielding the handle of each. The pruner's go before all others."""
        for index, layer in enumerate(self._parts.decoder_layers):
            yield layer.register_forward_pre_hook(partial(self._start, index))
            yield layer.register_forward_hook(partial(self._stop, index), prepend=True)

    def _start(self, index: int, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if self.round % 2:
            self._run_bare(index, layer, args[0])
        self._started = now(args[0].device)

    def _stop(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.pruned[index].append(now(args[0].device) - self._started)
        self.tokens[index] = args[0].shape[1]
        if self.round % 2 == 0:
            self._run_bare(index, layer, args[0])

    def _run_bare(self, index: int, layer: nn.Module, like: Tensor) -> None:
        """Call the layer once by itself: nothing of the prefill's goes in but the shape."""
        parts, length = self._parts, like.shape[1]
        hidden = torch.empty_like(like).copy_(like.flip(1))
        rotary = parts.rotary(hidden, torch.arange(length, device=hidden.device)[None])
        mask = segment_mask(parts.config, hidden, length, 0, None)
        given = {"attention_mask": mask, "position_embeddings": rotary, CACHE: DynamicCache()}
        forward: Any = layer.forward
        started = now(hidden.device)
        forward(hidden, **given, use_cache=True)
        self.bare[index].append(now(hidden.device) - started)

    def times(self, skip: int) -> list[LayerTimes]:
        """Return the times of every layer, without the first ``skip`` rounds."""
        found = []
        for index, tokens in enumerate(self.tokens):
            pruned, bare = self.pruned[index][skip:], self.bare[index][skip:]
            ratio = statistics.median(one / other for one, other in zip(pruned, bare, strict=True))
            found.append(LayerTimes(index, tokens, pruned, bare, ratio))
        return found


def measure(model: Any, prompt: BenchPrompt, method: Method, repeats: int) -> list[LayerTimes]:
    """Time the layers of ``repeats`` prefills, after two that warm up."""
    clock = _Clock(locate(model))
    with torch.inference_mode(), prune(model, method), ExitStack() as stack:
        for handle in clock.attach():
            stack.callback(handle.remove)
        for clock.round in tqdm(range(repeats + 2), desc="prefills", file=sys.stderr):
            model(**prompt.inputs, use_cache=True, logits_to_keep=1)
    return clock.times(skip=2)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and store the result."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.tools.benchmark.layers", description=__doc__)
    options.add_argument("--shape", choices=sorted(SHAPES), default="llava-1.5-7b")
    options.add_argument("--layers", type=int, default=8, help="decoder layers, of the shape's")
    options.add_argument("--retain", type=float, default=64)
    options.add_argument("--text-tokens", type=int, default=60)
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    model = random_model(_shallow(SHAPES[args.shape], args.layers), getattr(torch, args.dtype), args.device)
    prompt = make_prompt(model, locate(model), batch=args.batch, text_tokens=args.text_tokens)
    times = measure(model, prompt, ViTCoP(retained_tokens=args.retain), args.repeats)
    named = ("shape", "layers", "retain", "text_tokens", "batch", "repeats", "dtype", "device")
    given = {name: getattr(args, name) for name in named}
    command = command_of("layers", given)
    if args.out is not None:
        stored = {"command": command, "environment": environment(), **given}
        write_json(args.out, stored | {"times": [asdict(each) for each in times]})
    shown = Table("layer", "tokens", "in the prefill", "bare", "ratio", title=command)
    for each in times:
        medians = (f"{1e3 * statistics.median(seconds):.3g} ms" for seconds in (each.pruned, each.bare))
        shown.add_row(str(each.layer), str(each.tokens), *medians, f"{each.ratio:.3f}")
    Console(width=110).print(shown)


def _shallow(shape: Shape, layers: int) -> Shape:
    """Return a shape with fewer decoder layers, and a small tower of as many patches: it is not measured."""
    small: Any = {"hidden": 64, "intermediate": 128, "layers": 3, "heads": 4}
    if isinstance(shape.vision, FlatVision):
        small |= {"whole": (2,), "deepstack": (0, 1, 2)[: len(shape.vision.deepstack)]}
    return replace(shape, vision=replace(shape.vision, **small), language=replace(shape.language, layers=layers))


if __name__ == "__main__":
    main()
