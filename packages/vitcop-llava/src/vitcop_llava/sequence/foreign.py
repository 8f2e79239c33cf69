"""Recognises caches that were rebuilt from the keys and values of a pruned one, and so lost what those stand for.

Where layers differ in length nothing more is needed. Where a method leaves all of them one length, a rebuilt cache
looks like any other. So one key of each recent prefill is remembered, from the last layer, where it depends on the
whole prompt: a cache that holds it and knows of nothing dropped was made from that prefill's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from vitcop_llava.sequence.cache import HeldLayer, is_pruned

_REMEMBERED = 32
"""Prefills. A cache that is rebuilt later than that many prefills is not recognized."""

_prefills: deque[tuple[int, Tensor]] = deque(maxlen=_REMEMBERED)
_known: WeakSet[Cache] = WeakSet()


def remember(layers: Sequence[HeldLayer]) -> None:
    """Remember the prefill that has just filled ``layers``: the last key of its first row, without waiting for it.

    A prefill on the meta device is not remembered: its keys have no values to compare.
    """
    keys = layers[-1].held_keys if layers else None
    if keys is not None and not keys.is_meta and layers[-1].columns is not None:
        _prefills.append((keys.shape[2], keys[0, :, -1].detach().clone()))


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


def _holds_prefill(keys: Tensor | None) -> bool:
    if keys is None or keys.is_meta:
        return False
    for length, key in [*_prefills]:
        if keys.shape[2] >= length and keys[0, :, length - 1].shape == key.shape:
            held = keys[0, :, length - 1].detach()
            if torch.allclose(held.float(), key.to(held.device).float(), rtol=1e-2, atol=1e-3):
                return True
    return False
