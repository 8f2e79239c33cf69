"""Decoding: calls of one token whose every need is on the cache. In a static one a graph can hold them; in a growing
one they pass by whatever a prompt takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache, StaticCache

from vitcop_llava.compat import CACHE, KINDS, named_cache
from vitcop_llava.families import Parts
from vitcop_llava.hooks.attending import Step, step_of_group
from vitcop_llava.hooks.checks import PIXELS
from vitcop_llava.hooks.counting import without_padding
from vitcop_llava.hooks.layout import logical_positions
from vitcop_llava.hooks.patching import HookSwitch
from vitcop_llava.sequence.cache import PrunedLayer
from vitcop_llava.sequence.rotary import by_axis
from vitcop_llava.sequence.static import PrunedStaticLayer, is_static_pruned

Kwargs = dict[str, Any]

STEPS = "vitcop_steps"
"""The argument in which decoder layers find what is theirs: a `Step` for each."""

_ENCODED = (*PIXELS.values(), "mm_encoder_outputs")


def by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: Kwargs) -> Kwargs:
    """Return all arguments of a forward by name."""
    return named_cache({**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs)


def of_one_token(given: Kwargs) -> Kwargs:
    """Return the arguments of a step in shapes that stay from token to token."""
    kinds = given.get(KINDS)
    return given if kinds is None or kinds.shape[-1] == 1 else {**given, KINDS: kinds[..., -1:]}


def is_step(given: Kwargs, switch: HookSwitch) -> bool:
    """Return whether a call is one token of text after a static cache that nothing has to be looked up or checked for.

    Its tokens are not pruned, or were pruned and the layers' hooks stay on for as long as it lives.
    """
    cache = given.get(CACHE)
    if not isinstance(cache, StaticCache) or not _is_token(given):
        return False
    layer, mask = cache.layers[0], given.get("attention_mask")
    return not is_static_pruned(layer) or ((mask is None or mask.ndim == 2) and switch.stays_for(layer.state))


def _is_token(given: Kwargs) -> bool:
    """Return whether a call is one token of text in each row."""
    if any(given.get(name) is not None for name in _ENCODED):
        return False
    tokens = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
    return tokens is not None and tokens.shape[1] == 1


def is_plain_token(given: Kwargs, parts: Parts) -> bool:
    """Return whether a call is one token of text after a growing cache that was pruned, and needs what the last one
    did: the same in every layer. Reads the mask, as transformers does.
    """
    cache: Any = given.get(CACHE)
    if torch.compiler.is_compiling() or not isinstance(cache, DynamicCache) or not cache.layers:
        return False
    first: Any = cache.layers[0]
    if not isinstance(first, PrunedLayer) or first.state.plain_for is None:
        return False
    state = first.state
    if state.plain_for != parts.config._attn_implementation or parts.window is not None or not _is_token(given):
        return False
    for layer in cache.layers:
        if getattr(layer, "state", None) is not state:  # a copy, or anybody's
            return False
    mask = given.get("attention_mask")
    if mask is None:
        return True
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != first.get_seq_length() + 1:
        return False
    return without_padding(mask) is None


def is_plain_step(kwargs: Kwargs) -> bool:
    """Return whether the language model is given one token after a static cache that nothing was dropped in."""
    cache, embeds = kwargs.get(CACHE), kwargs.get("inputs_embeds")
    is_one = embeds is not None and embeds.shape[1] == 1
    return is_one and isinstance(cache, StaticCache) and not is_static_pruned(cache.layers[0])


def is_stepping(cache: object) -> bool:
    """Return whether a call is at work that continues what was pruned in a static cache."""
    return isinstance(cache, StaticCache) and is_static_pruned(cache.layers[0]) and cache.layers[0].state.is_step


def is_following(cache: object) -> bool:
    """Return whether a call is at work that `is_plain_token` was true of."""
    first = next(iter(cache.layers), None) if isinstance(cache, DynamicCache) else None
    return isinstance(first, PrunedLayer) and first.state.is_step


def followed(kwargs: Kwargs) -> Kwargs:
    """Return the arguments of the language model for a token that `is_plain_token` was true of."""
    first, ids, device = kwargs[CACHE].layers[0], kwargs.get("position_ids"), kwargs["inputs_embeds"].device
    positions = logical_positions(ids, first.get_seq_length(), 1, device) - first.entry_dropped
    return {**kwargs, "position_ids": by_axis(positions), "attention_mask": None}


def stepped(parts: Parts, kwargs: Kwargs) -> Kwargs:
    """Return the arguments of the language model for tokens that follow in a static cache that was pruned; and tell the
    cache where they go.
    """
    embeds, mask, layers = kwargs["inputs_embeds"], kwargs.get("attention_mask"), kwargs[CACHE].layers
    positions = kwargs.get("position_ids")
    if positions is None:
        numbers = torch.arange(embeds.shape[1], device=embeds.device)
        positions = (layers[0].cumulative_length.to(embeds.device) + numbers)[None]
    positions = positions - layers[0].entry_dropped
    groups: dict[int, Step] = {}
    slots: dict[int, Tensor] = {}
    for layer in layers:
        if layer.group not in groups:
            groups[layer.group] = step_of_group(parts, layer, embeds, mask, positions)
            slots[layer.group] = layer.next_slots(embeds.shape[1])
    torch._foreach_add_([layer.cumulative_length for layer in layers], embeds.shape[1])  # one launch
    layers[0].state.slots = slots
    steps = tuple(groups[layer.group] for layer in layers)
    return {**kwargs, "position_ids": positions, "attention_mask": steps[0]["attention_mask"], STEPS: steps}


def or_take_back(layers: Sequence[PrunedStaticLayer], run: Callable[..., Any], kwargs: Kwargs) -> Any:
    """Run one token, and leave no trace of it in the cache where that fails."""
    lengths = [layer.physical_length for layer in layers]
    try:
        return run(**kwargs)
    except BaseException:
        device = layers[0].cumulative_length.device
        is_recorded = device.type == "cuda" and torch.cuda.is_current_stream_capturing()  # which does nothing
        if layers[0].state.slots is not None and not is_recorded:
            count_back(layers)
        for layer, length in zip(layers, lengths, strict=True):
            layer.physical_length = length
        raise


def count_back(layers: Sequence[PrunedStaticLayer]) -> None:
    """Let the next token be written over the last one."""
    torch._foreach_sub_([layer.cumulative_length for layer in layers], 1)


def step_of(index: int, kwargs: Kwargs) -> Kwargs | None:
    """Return the arguments of decoder layer ``index``; None where it was given no steps."""
    steps = kwargs.get(STEPS)
    if steps is None:
        return None
    return {**{name: value for name, value in kwargs.items() if name != STEPS}, **steps[index]}


def whole_mask(mask: Tensor | None, cache: StaticCache) -> Tensor | None:
    """Return a mask ``[B, columns]`` as long as the cache, so that its shape stays from token to token."""
    layer = cache.layers[0]
    assert isinstance(layer, PrunedStaticLayer)  # only of a pruned cache
    return None if mask is None else functional.pad(mask, (0, layer.max_cache_len - mask.shape[1]), value=1)
