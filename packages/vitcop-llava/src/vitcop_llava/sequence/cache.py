"""Cache layers that remember what they dropped.

Outside, a pruned cache has the length of the prompt that the caller sees (*logical*); inside, each layer holds the keys
and values of what survived there (*physical*). Row state (which logical column each slot stands for) lives in the
layer, so that beam search, row selection and two conversations side by side never mix it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self, cast

import torch
from torch import LongTensor, Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, StaticCache

from vitcop_llava.sequence.described import CacheState, Described, refuse_plain
from vitcop_llava.sequence.static import STATIC_LAYERS, PrunedStaticLayer, static_layers

_append = DynamicLayer.update
"""Found once: each layer does this for each token."""


class PrunedLayer(Described, DynamicLayer):
    """A growing cache layer whose first slots stand for chosen columns of a longer prompt.

    Attributes:
        is_shared: Whether the layer is a `fork` that was not updated yet: one row, standing for as many as come.
    """

    def __init__(self, state: CacheState | None = None) -> None:
        DynamicLayer.__init__(self)
        self.state, self.is_shared = state or CacheState(), False
        self._forget()

    @property
    def physical_length(self) -> int:
        """Slots in use."""
        return super().get_seq_length()

    @property
    def held_keys(self) -> Tensor | None:
        """``[B, G, physical_length, e]``: the keys of the slots in use."""
        return self.keys

    def slot_columns(self, rows: int, device: torch.device) -> Tensor:
        """Return the logical column of every slot, ``[B, physical]``, those after the described ones included."""
        return self.columns_of(self.physical_length, rows, device)

    def fork(self, state: CacheState) -> Self:
        """Return a layer with the content of this one, which has one row, for as many rows as its first update brings.

        ``state`` is that of its new cache.
        Keys and values are the same tensors until then, and are never written to: updates make new ones.
        """
        forked = copy(self)
        forked.is_shared, forked.state = True, state
        return forked

    def _unshare(self, rows: int) -> None:
        assert self.keys is not None  # a fork has content
        assert self.values is not None
        self.keys, self.values = (held.expand(rows, -1, -1, -1) for held in (self.keys, self.values))
        self.columns = None if self.columns is None else self.columns.expand(rows, -1)
        self.is_shared = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values.

        Raises:
            ValueError: No pruner is at work to keep lengths and masks in step with the dropped tokens.
        """
        if self.is_described and not self.state.is_open:
            refuse_plain()
        if self.is_shared:
            self._unshare(key_states.shape[0])
        return _append(self, key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """Return the logical length: what the caller's prompt and the generated tokens add up to."""
        physical = self.physical_length
        return 0 if physical == 0 else physical - self.described + self.covered

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the physical sizes, which are those of the keys."""
        return self.physical_length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens (a negative number of them), as far back as the end of the last image.

        Raises:
            ValueError: The number is positive, or reaches into an image or into padding.
        """
        newer = self.physical_length - self.described
        if self.columns is not None and not -newer <= tokens_to_remove <= 0:
            self._uncover(-tokens_to_remove - newer, newer)
        super().crop(tokens_to_remove)

    def _uncover(self, count: int, newer: int) -> None:
        """Forget the last ``count`` covered columns, if they are all text."""
        assert self.columns is not None  # covered columns are described
        tail = 0 if self.text_tail is None else self.text_tail
        if isinstance(tail, Tensor):
            tail = int(tail.item())  # rolling back may wait for the device
        if not 0 <= count <= tail:
            raise ValueError(
                f"tokens_to_remove must be from {-newer - tail} to 0, minus the tokens after the last image, got "
                f"{-newer - count}; a pruned image cannot be cut in part"
            )
        self.columns, self.covered = self.columns[:, : self.described - count], self.covered - count
        self.text_tail = None if self.text_tail is None else self.text_tail - count

    def reset(self) -> None:
        """Empty the layer and forget what was dropped."""
        # First of all: some versions of transformers would write zeros, into what a fork shares too.
        self.keys = self.values = None
        self.is_initialized = self.is_shared = False
        super().reset()
        self._forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder keys, values and row state."""
        super().reorder_cache(cast(LongTensor, beam_idx))
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of keys, values and row state."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of keys, values and row state."""
        super().batch_repeat_interleave(repeats)
        if self.columns is not None:
            self.columns = self.columns.repeat_interleave(repeats, dim=0)
        if isinstance(self.entry_dropped, Tensor):
            self.entry_dropped = self.entry_dropped.repeat_interleave(repeats, dim=0)
        if isinstance(self.shift, Tensor):
            self.shift = self.shift.repeat_interleave(repeats, dim=0)


HeldLayer = PrunedLayer | PrunedStaticLayer
"""A layer that remembers what it dropped."""


class KeyTap(Cache):
    """Stands in for a cache in one layer of a call that has none: hands on keys and values, and remembers the keys.

    Attributes:
        keys: ``[B, G, n, e]``, the layer's keys as it would cache them.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Remember the keys."""
        self.keys = key_states.detach()
        return key_states, value_states


def check_cache(cache: object) -> None:
    """Raise unless ``cache`` can hold rows of different lengths in different layers, on the device.

    Raises:
        ValueError: It is quantized, offloaded, or anything else but a dynamic or a static cache.
    """
    if cache is None:
        return
    if not isinstance(cache, DynamicCache | StaticCache):
        raise ValueError(
            f"past_key_values must be a DynamicCache or StaticCache of transformers to be pruned, got a "
            f"{type(cache).__name__}"
        )
    if cache.offloading:
        raise ValueError(
            f"past_key_values must not be offloaded to be pruned, got an offloaded {type(cache).__name__}; make it "
            "without offloading"
        )
    # Of a sequence that fits its window such a layer holds everything.
    growing = (DynamicLayer, PrunedLayer, DynamicSlidingWindowLayer)
    for index, layer in enumerate(cache.layers):
        if type(layer) not in (STATIC_LAYERS if isinstance(cache, StaticCache) else growing):
            raise ValueError(
                f"past_key_values must have layers of full attention to be pruned, got a {type(layer).__name__} as "
                f"layer {index}; give a DynamicCache or StaticCache, or none"
            )


def cached_length(cache: object) -> int:
    """Return the tokens of a dynamic or static cache, dropped ones included; 0 for any other. Read a static one's
    counter.
    """
    return int(cache.get_seq_length()) if isinstance(cache, DynamicCache | StaticCache) else 0


def is_pruned(cache: object) -> bool:
    """Return whether some layer of ``cache`` dropped tokens."""
    return any(isinstance(layer, Described) and layer.columns is not None for layer in _layers_of(cache))


def is_forked(cache: object) -> bool:
    """Return whether ``cache`` holds a prefix that nothing has followed yet."""
    return any(isinstance(layer, PrunedLayer) and layer.is_shared for layer in _layers_of(cache))


def _layers_of(cache: object) -> Sequence[Any]:
    found: Sequence[Any] = getattr(cache, "layers", ()) if isinstance(cache, Cache) else ()  # a pair of caches has none
    return found


def check_follows(placeholders: Tensor) -> None:
    """Raise where tokens ``[B, L]`` that are to follow a prefix, without images, have placeholders (bool) among them.

    Raises:
        ValueError: The prompt is given as a whole, and its beginning would be read a second time, as text.
    """
    if bool(placeholders.any()):  # waits for the device, once a conversation
        raise ValueError(
            "input_ids must be what follows the prefix in past_key_values, got image placeholders without images; "
            "generate skips what the cache holds, but not with an assistant or prompt lookup: transformers begins "
            "those with an empty cache. A direct call of the model takes the question's tokens alone"
        )


def check_cuts(cache: Cache, cut_layers: tuple[int, ...]) -> None:
    """Raise unless what ``cache`` dropped was dropped before the same layers.

    Layers between two cuts share one mask, so they have to hold the same columns.

    Raises:
        ValueError: It was pruned before other layers.
    """
    groups = [layer.group if isinstance(layer, Described) else 0 for layer in cache.layers]
    if is_pruned(cache) and groups != [sum(index >= cut for cut in cut_layers) for index in range(len(groups))]:
        earlier = tuple(index for index in range(1, len(groups)) if groups[index] != groups[index - 1])
        raise ValueError(
            f"past_key_values must be pruned before layers {cut_layers} for an image that joins it now, got layers "
            f"{earlier}; use the same cut layers throughout a conversation, or start from a new cache"
        )


def install_layers(cache: Cache, num_layers: int) -> Sequence[HeldLayer]:
    """Put pruned layers in place of the plain ones, with what those already hold."""
    held = static_layers(cache) if isinstance(cache, StaticCache) else grown_layers(cache, num_layers)
    cache.layers = [*held]
    return held


def grown_layers(cache: Cache, num_layers: int) -> list[PrunedLayer]:
    """Return the layers of a dynamic cache as pruned ones, with what they already hold, and those that it has yet to
    get.
    """
    state = next((layer.state for layer in cache.layers if isinstance(layer, PrunedLayer)), CacheState())
    layers = [_converted(layer, state) for layer in cache.layers]
    return [*layers, *(PrunedLayer(state) for _ in range(num_layers - len(layers)))]


def _converted(layer: Any, state: CacheState) -> PrunedLayer:
    if isinstance(layer, PrunedLayer):
        layer.state = state  # copies of single layers have others
        return layer
    pruned = PrunedLayer(state)
    if layer.is_initialized and layer.keys.numel() > 0:
        pruned.lazy_initialization(layer.keys, layer.values)
        pruned.keys, pruned.values = layer.keys, layer.values
    return pruned
