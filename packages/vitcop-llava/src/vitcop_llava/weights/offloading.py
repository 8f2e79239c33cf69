"""Models that accelerate runs in parts: where a module computes, and where its weights are meanwhile.

Known by the attributes of accelerate's hooks, so that accelerate is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")


def execution_device(module: nn.Module) -> torch.device:
    """Return the device that a module computes on, which that of its weights need not be: those may come for the call
    alone.

    Args:
        module: With weights, or hooks of accelerate, of its own or in it.

    Returns:
        Never the meta device, on which nothing is computed.
    """
    for part in module.modules():
        for hook in _hooks(part):
            device = getattr(hook, "execution_device", None)
            if device is not None and torch.device(device).type != "meta":
                return torch.device(device)
    held = (parameter.device for parameter in module.parameters() if not parameter.is_meta)
    return next(held, HOST)


def find_store(base: nn.Module, name: str) -> tuple[Any, str] | None:
    """Return where a weight of ``base`` that is on the meta device really is.

    Args:
        base: The module.
        name: The weight's name in its state.

    Returns:
        The hook that brings it in, and its name in that hook's ``weights_map``; None where there is no such hook.
    """
    parts = name.split(".")
    for place in reversed(range(len(parts))):
        for hook in _hooks(base.get_submodule(".".join(parts[:place]))):
            if getattr(hook, "weights_map", None) is not None:
                return hook, ".".join(parts[place:])
    return None


def read_store(hook: Any, name: str) -> Tensor:
    """Return a weight that `find_store` found, from memory or disk."""
    found: Tensor = hook.weights_map[name]
    return found


@contextmanager
def weights_in_place(*owners: nn.Module) -> Iterator[None]:
    """Have the weights of some modules where they compute, for calls of parts of them from outside their forward.

    accelerate may bring in the weights of a whole layer as the layer runs (``preload_module_classes``); a projection
    that is called by itself would compute on the meta device.
    """
    hooked: list[Any] = [owner for owner in owners if vars(owner).get("_hf_hook") is not None]
    with ExitStack() as stack:
        if hooked and any(parameter.is_meta for owner in owners for parameter in owner.parameters()):
            for owner in hooked:
                owner._hf_hook.pre_forward(owner)
                stack.callback(owner._hf_hook.post_forward, owner, None)
        yield


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Return accelerate's hooks on a module, several of which it puts into one."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
