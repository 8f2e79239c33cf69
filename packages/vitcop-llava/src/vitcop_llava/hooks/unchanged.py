"""What recorded work depends on, beside its inputs: if any of it changes, the recording is of something else.

Modules say most of it in their attributes: weights, and where they lie; numbers and words, such as a scale or an
epsilon; hooks and methods that were put on. The rest are settings of torch and of the configuration. What cannot be
seen through is an obstacle.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vitcop_llava.hooks.patching import RECORDING, Replacement, comes_from

_PLAIN = ("torch.nn.modules.", "transformers.models.", "transformers.activations", "transformers.modeling_")
"""Where modules come from whose work their attributes and their code say all about."""

_OURS = "vitcop_llava.hooks."
_AFTERWARDS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_WORDS = frozenset({bool, int, float, str, NoneType})
_WEIGHTS = frozenset({Tensor, nn.Parameter})
_ALL_IN_WEIGHTS = frozenset({nn.Linear})
"""Modules whose numbers are the shapes of their weights. They are most of a layer's."""


def state_of(
    config: Any, layers: Sequence[nn.Module], own: Mapping[nn.Module, Replacement], *, hooks: int
) -> tuple[Hashable, str | None]:
    """Return what the work of ``layers`` depends on, for a key; and what keeps it from being replayed, if anything
    does.

    Args:
        config: Of the model that the layers are of.
        layers: What would be replayed.
        own: The replacement that each of them has, of our own.
        hooks: How many forward pre-hooks each of them has, of our own.
    """
    found = [*words_of(config), *_settings()]
    rest = [*layers]
    while rest:  # in every prefill: so nothing here is asked twice
        module = rest.pop()
        attributes, ours, kind = vars(module), own.get(module), type(module)
        rest += attributes["_modules"].values()
        if obstacle := obstacle_of(module, attributes, ours, hooks if ours is not None else 0):
            return None, obstacle
        found += (id(kind), kind.forward)
        if kind not in _ALL_IN_WEIGHTS:
            found += [value for value in attributes.values() if type(value) in _WORDS]
            if (single := attributes.get("config", config)) is not config:
                found += words_of(single)
        for held in (*attributes["_parameters"].values(), *attributes["_buffers"].values()):
            if held is None:
                continue
            if type(held) not in _WEIGHTS:  # which may keep its values anywhere, as quantized ones do
                return None, f"a {kind.__name__} holds a {type(held).__name__}"
            found += (held.data_ptr(), held.dtype, held.shape, held.stride())
    return tuple(found), None


def words_of(config: Any) -> list[Hashable]:
    """Return what a configuration says that the work of its model may depend on."""
    attention = ALL_ATTENTION_FUNCTIONS.get(getattr(config, "_attn_implementation", None))
    return [attention, *(value for value in vars(config).values() if type(value) in _WORDS)]


def _settings() -> list[Hashable]:
    """Return the settings of torch that any work depends on."""
    kernels = torch.backends.cuda
    return [
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.math_sdp_enabled(),
        kernels.cudnn_sdp_enabled(),
    ]


def obstacle_of(
    module: nn.Module, attributes: Mapping[str, Any], ours: Replacement | None, hooks: int | None
) -> str | None:
    """Return what keeps the work of a module from being replayed, or None.

    Args:
        module: It.
        attributes: Its own.
        ours: The replacement of its forward, of our own; None where there is none.
        hooks: How many forward pre-hooks it has, of our own; None where all that are our own are right.
    """
    name = type(module).__name__
    is_own = "forward" not in attributes if ours is None else ours.is_outermost
    if not is_own or "_hf_hook" in attributes or attributes.get("_compiled_call_impl") is not None:
        return f"the forward of a {name} was replaced or compiled"
    if not _is_plain(type(module).__module__):
        return f"a layer has a {type(module).__module__}.{name} in it"
    if module.training:
        return "the model is in training mode"
    before = attributes["_forward_pre_hooks"]
    after = [hook for which in _AFTERWARDS for hook in attributes[which].values()]
    if hooks is None:
        is_bare = all(comes_from(hook, (RECORDING, _OURS)) for hook in (*before.values(), *after))
    else:
        is_bare = len(before) <= hooks and all(comes_from(hook, RECORDING) for hook in after)
    return None if is_bare else f"a {name} has hooks"


@cache
def _is_plain(place: str) -> bool:
    return place.startswith(_PLAIN)


def obstacle_here(device: torch.device) -> str | None:
    """Return what keeps anything from being replayed at this moment, or None."""
    if torch.is_grad_enabled():
        return "gradients are recorded; call it under torch.inference_mode() or torch.no_grad()"
    if torch.compiler.is_compiling():
        return "it is being compiled"
    if device.type not in ("cpu", "cuda"):
        return f"it runs on {device.type}"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "somebody else records a graph"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    # A default device is a mode too, and changes nothing that names its own.
    has_modes = any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    if torch_modules._has_any_global_hook() or _get_current_dispatch_mode() is not None or has_modes:
        return "hooks or modes of torch that see everything are on"
    return None


def is_data(value: object) -> bool:
    """Return whether a value says all about itself in its representation."""
    if isinstance(value, Mapping):
        return all(map(is_data, value.values()))
    return value is None or isinstance(value, bool | int | str)


def weights_of(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    """Yield the parameters and buffers of modules."""
    for each in modules:
        yield from each.parameters()
        yield from each.buffers()
