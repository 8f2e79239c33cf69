"""Where the time of a prefill goes.

Waiting for the device around every part slows the whole down: good for shares, not for totals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from vitcop_llava.families import Parts
from vitcop_llava.hooks.patching import Replacement
from vitcop_llava.tools.benchmark.prompts import BenchPrompt
from vitcop_llava.tools.model.measuring import now

PARTS = ("tower", "projector", "layers", "head", "rest")
"""Vision tower, projector, decoder layers, language head; and all that is left: pruning above all, where there is any,
and what every prefill does between those modules."""


def time_parts(model: Any, parts: Parts, prompt: BenchPrompt) -> dict[str, float]:
    """Return the seconds of each of `PARTS` in one prefill of the model as it is: plain, or under `prune`.

    A method works in hooks around those modules. Clocks run inside of these, so that its work is in none of the modules
    but in the rest.
    """
    device, spent = prompt.inputs["input_ids"].device, dict.fromkeys(PARTS, 0.0)
    with ExitStack() as stack, torch.inference_mode():
        for module, name in modules_of(model, parts):
            stack.enter_context(clock(module, name, spent, device))
        started = now(device)
        model(**prompt.inputs, use_cache=True, logits_to_keep=1)
        whole = now(device) - started
    spent["rest"] = whole - sum(spent.values())
    return spent


def modules_of(model: Any, parts: Parts) -> list[tuple[nn.Module, str]]:
    """Return every module that is one of `PARTS`, with the part's name; none for the rest."""
    layers = [(layer, "layers") for layer in parts.decoder_layers]
    tower = [parts.vision_tower]
    if any(module is parts.projector for module in parts.vision_tower.modules()):
        # A tower that calls the projector itself is what it calls besides.
        tower = [each for each in _called(parts.vision_tower) if each is not parts.projector]
    return [*((each, "tower") for each in tower), (parts.projector, "projector"), *layers, (model.lm_head, "head")]


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a module calls: its children, and those in its lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield child


@contextmanager
def clock(
    module: nn.Module, name: str, spent: dict[str, float], device: torch.device, *, method: str = "forward"
) -> Iterator[None]:
    """Add the time of a module's method to ``spent[name]``, without a hook: a tower that is hooked runs whole."""

    def timed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = now(device)
        try:
            return original(*args, **kwargs)
        finally:
            spent[name] += now(device) - started

    replacement = Replacement(module, method, timed)
    try:
        yield
    finally:
        replacement.remove()
