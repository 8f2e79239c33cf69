"""Recognises caches that were rebuilt from the keys and values of a pruned one, and so lost what those stand for.

Where layers differ in length nothing more is needed. Where a method leaves all of them one length, a rebuilt cache
looks like any other. So one key of each recent prefill is remembered, from the last layer, where it depends on the
whole prompt: a cache that holds it and knows of nothing dropped was made from that prefill's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from vitcop_llava.sequence.cache import HeldLayer, is_pruned

_REMEMBERED = 32
"""Prefills. A cache that is rebuilt later than that many prefills is not recognized."""


class _Prefill(NamedTuple):
    """The slots of a layer, which of them is looked at (int64 ``[1]``; None for the last), and its key ``[G, e]``."""

    slots: int
    place: Tensor | None
    key: Tensor


_prefills: deque[_Prefill] = deque(maxlen=_REMEMBERED)
_known: WeakSet[Cache] = WeakSet()


def remember(layers: Sequence[HeldLayer], row: int | None, valid: Tensor | None) -> None:
    """Remember the prefill that has just filled ``layers``: the last key of one row, without waiting for it.

    A prefill on the meta device is not remembered: its keys have no values to compare.

    Args:
        layers: Of the cache; empty where there is none.
        row: One that lost tokens. The keys of others are those of their prompts without pruning. None where none did.
        valid: ``[B, P]`` bool, False where one of the last P slots is padding; None for no padding.
    """
    keys = layers[-1].held_keys if layers else None
    if keys is None or keys.is_meta or layers[-1].columns is None or row is None:
        return
    slots, place = keys.shape[2], None
    if valid is not None:
        number = torch.arange(slots - valid.shape[1], slots, device=keys.device)
        place = (number * valid[row].to(keys.device)).amax(dim=0, keepdim=True)
    _prefills.append(_Prefill(slots, place, _key_at(keys[row : row + 1].detach(), slots, place)[0].clone()))


def check_foreign(cache: object) -> None:
    """Raise for a cache that was rebuilt from a pruned one. Reads an unpruned cache once, where there is one.

    Raises:
        ValueError: It was: its layers differ in length, or it holds a key of a pruned prefill.
    """
    if not isinstance(cache, DynamicCache) or cache in _known or is_pruned(cache):
        return
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.keys is not None]
    lengths = {layer.get_seq_length() for layer in layers}
    if len(lengths) > 1 or (layers and _holds_prefill(layers[-1].keys)):
        raise ValueError(
            f"past_key_values must have as many tokens in every layer, and all of its prompt's, got {sorted(lengths)} "
            "of a pruned prompt: a cache that is rebuilt from keys and values has lost which tokens they stand for; "
            "pass on the cache itself"
        )
    _known.add(cache)


def _key_at(keys: Tensor, slots: int, place: Tensor | None) -> Tensor:
    """Return the keys ``[B, G, e]`` of one slot, without waiting for the device."""
    return keys[:, :, slots - 1] if place is None else keys.index_select(2, place.to(keys.device))[:, :, 0]


def _holds_prefill(keys: Tensor | None) -> bool:
    if keys is None or keys.is_meta:
        return False
    for slots, place, key in [*_prefills]:
        if keys.shape[2] >= slots and (keys.shape[1], keys.shape[3]) == key.shape:
            held = _key_at(keys.detach(), slots, place).float()
            is_close = torch.isclose(held, key.to(held.device).float(), rtol=1e-2, atol=1e-3)
            if bool(is_close.flatten(1).all(1).any()):
                return True
    return False
