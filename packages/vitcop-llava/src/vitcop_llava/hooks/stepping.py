"""Text that continues a cache, which holds all that its layers need.

A lone token opens no call: in a static cache a graph can hold it, in a growing one it passes by what a prompt takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache, StaticCache

from vitcop_llava.compat import CACHE, KINDS
from vitcop_llava.families import Parts
from vitcop_llava.hooks.arguments import tokens_of
from vitcop_llava.hooks.attending import Step, growing_mask, static_mask, steps_of
from vitcop_llava.hooks.checks import brings_images
from vitcop_llava.hooks.counting import without_padding
from vitcop_llava.hooks.layout import logical_positions
from vitcop_llava.hooks.patching import HookSwitch
from vitcop_llava.sequence.cache import PrunedLayer
from vitcop_llava.sequence.rotary import by_axis
from vitcop_llava.sequence.static import PrunedStaticLayer, is_static_pruned

Kwargs = dict[str, Any]

STEPS = "vitcop_steps"
"""The argument in which decoder layers find what is theirs: a `Step` for each."""


def of_one_token(given: Kwargs) -> Kwargs:
    """Return the arguments of a step in shapes that stay from token to token."""
    kinds = given.get(KINDS)
    return given if kinds is None or kinds.shape[-1] == 1 else {**given, KINDS: kinds[..., -1:]}


def is_static_step(given: Kwargs, switch: HookSwitch) -> bool:
    """Return whether a call is one token of text after a static cache that nothing has to be looked up or checked for.

    Its tokens are not pruned, or were pruned and the layers' hooks stay on for as long as it lives.
    """
    cache = given.get(CACHE)
    if not isinstance(cache, StaticCache) or not _is_token(given):
        return False
    layers: list[Any] = cache.layers
    if not is_static_pruned(layers[0]):
        return True
    state, mask = layers[0].state, given.get("attention_mask")
    for layer in layers:
        if layer.state is not state:  # it was copied by itself
            return False
    return (mask is None or _covers(mask, given, layers[0])) and switch.stays_for(state)


def _covers(mask: Any, given: Kwargs, layer: PrunedStaticLayer) -> bool:
    """Return whether a mask has a row for each of a call's, and columns for all that the host knows of."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != len(tokens_of(given)):
        return False
    # Of a full cache, which says so itself, the mask is no longer than the cache.
    return torch.compiler.is_compiling() or mask.shape[1] > min(
        layer.physical_length + layer.lost, layer.max_cache_len - 1
    )


def _is_token(given: Kwargs) -> bool:
    """Return whether a call is one token of text in each row."""
    if brings_images(given):
        return False
    tokens, positions = tokens_of(given), given.get("position_ids")
    if positions is not None and not (isinstance(positions, Tensor) and positions.shape[-1:] == (1,)):
        return False
    return isinstance(tokens, Tensor) and tokens.ndim > 1 and tokens.shape[1] == 1


def is_growing_step(given: Kwargs, parts: Parts) -> bool:
    """Return whether a call is one token of text after a growing cache that was pruned, and there is nothing else to
    check.
    """
    cache = given.get(CACHE)
    if torch.compiler.is_compiling() or not isinstance(cache, DynamicCache) or not cache.layers:
        return False
    layers: list[Any] = cache.layers
    first = layers[0]
    if not isinstance(first, PrunedLayer) or not first.is_described or parts.window is not None:
        return False
    for layer in layers:
        # One that was copied by itself has another state, and a fork has rows yet to get.
        if getattr(layer, "state", None) is not first.state or layer.is_shared:
            return False
    if not _is_token(given):
        return False
    mask = given.get("attention_mask")
    fits = isinstance(mask, Tensor) and mask.shape == (len(tokens_of(given)), first.get_seq_length() + 1)
    return mask is None or fits


def is_plain_step(kwargs: Kwargs) -> bool:
    """Return whether the language model is given one token after a static cache that nothing was dropped in."""
    cache, embeds = kwargs.get(CACHE), kwargs.get("inputs_embeds")
    is_one = embeds is not None and embeds.shape[1] == 1
    return is_one and isinstance(cache, StaticCache) and not is_static_pruned(cache.layers[0])


def continues_static(cache: object) -> bool:
    """Return whether a call is at work that continues what was pruned in a static cache."""
    return isinstance(cache, StaticCache) and is_static_pruned(cache.layers[0]) and cache.layers[0].state.is_text


def continues_growing(cache: object) -> bool:
    """Return whether a call is at work that continues what was pruned in a growing cache."""
    first = next(iter(cache.layers), None) if isinstance(cache, DynamicCache) else None
    return isinstance(first, PrunedLayer) and first.state.is_text


def growing_arguments(parts: Parts, kwargs: Kwargs, switch: HookSwitch, *, is_compiled: bool) -> Kwargs:
    """Return the arguments of the language model for tokens that follow in a growing cache that was pruned.

    The layers' hooks stay off where all take the same. Where they do not, what each takes is on the cache, and the
    hooks are on for as long as it lives. Reads the mask, as transformers does.

    Args:
        parts: The model's.
        kwargs: The arguments that it was given.
        switch: The layers' hooks.
        is_compiled: Whether the language model or a layer was: some versions of transformers make a mask in compiled
            code where there is nothing to hide, of one size for all layers.
    """
    embeds, layers = kwargs["inputs_embeds"], kwargs[CACHE].layers
    state, past, queries = layers[0].state, layers[0].get_seq_length(), embeds.shape[1]
    mask = without_padding(kwargs.get("attention_mask"))
    positions = logical_positions(kwargs.get("position_ids"), past, queries, embeds.device)
    positions = positions - layers[0].entry_dropped
    held = {layer.group: layer for layer in reversed(layers)}
    masks = {group: growing_mask(parts, layer, embeds, mask) for group, layer in held.items()}
    groups = steps_of(parts, held, masks, embeds, positions)
    first = groups[layers[0].group]
    if is_compiled or not _are_alike([*groups.values()], parts):
        switch.hold_for(state)
        state.steps = tuple(groups[layer.group] for layer in layers)
    return {**kwargs, "position_ids": by_axis(positions), "attention_mask": first["attention_mask"]}


def _are_alike(steps: Sequence[Step], parts: Parts) -> bool:
    """Return whether all layers can take the first one's arguments."""
    if any("position_embeddings" in step for step in steps):
        return False
    is_bare = all(step["attention_mask"] is None for step in steps)
    return is_bare or (len(steps) == 1 and parts.window is None)


def growing_step_of(index: int, kwargs: Kwargs) -> Kwargs | None:
    """Return the arguments of decoder layer ``index`` in a step after a growing cache; None where they are the first
    one's.
    """
    cache: Any = kwargs.get(CACHE)
    if not continues_growing(cache):
        return None
    steps = cache.layers[0].state.steps
    return None if steps is None else {**kwargs, **steps[index]}


def static_arguments(parts: Parts, kwargs: Kwargs) -> Kwargs:
    """Return the arguments of the language model for tokens that follow in a static cache that was pruned; and tell the
    cache where they go.
    """
    embeds, mask, layers = kwargs["inputs_embeds"], kwargs.get("attention_mask"), kwargs[CACHE].layers
    positions = kwargs.get("position_ids")
    if positions is None:
        numbers = torch.arange(embeds.shape[1], device=embeds.device)
        positions = (layers[0].cumulative_length.to(embeds.device) + numbers)[None]
    positions = positions - layers[0].entry_dropped
    held = {layer.group: layer for layer in reversed(layers)}
    masks = {group: static_mask(parts, layer, embeds, mask) for group, layer in held.items()}
    groups = steps_of(parts, held, masks, embeds, positions)
    slots = {group: layer.next_slots(embeds.shape[1]) for group, layer in held.items()}
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


def static_step_of(index: int, kwargs: Kwargs) -> Kwargs:
    """Return the arguments of decoder layer ``index`` in a step after a static cache."""
    return {**{name: value for name, value in kwargs.items() if name != STEPS}, **kwargs[STEPS][index]}


def whole_mask(mask: Tensor | None, cache: StaticCache) -> Tensor | None:
    """Return a mask ``[B, columns]`` as long as the cache, so that its shape stays from token to token."""
    layer = cache.layers[0]
    assert isinstance(layer, PrunedStaticLayer)  # only of a pruned cache
    return None if mask is None else functional.pad(mask, (0, layer.max_cache_len - mask.shape[1]), value=1)
