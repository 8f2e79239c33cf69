"""Layers of a static cache whose buffers have the size that each layer's plan leaves.

A static cache has room for a number of tokens, the caller's. A layer that dropped some needs as much less, and gets it.
Which slot a new token goes to follows from a counter on the device, so that nothing on the host changes from token to
token, and a graph that was compiled for one serves all.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer, StaticSlidingWindowLayer

from vitcop_llava.sequence.described import CacheState, Described, refuse_plain


class PrunedStaticLayer(Described, StaticLayer):
    """A layer of fixed size whose first slots stand for chosen columns of a longer prompt.

    Attributes:
        physical_length: Slots in use, as far as the host knows: compiled steps are not counted. Exact in a prefill.
        has_own_rows: Whether what the slots stand for is in memory of its own, and not shared with other layers.
    """

    # StaticLayer counts with this; it is the logical length.
    cumulative_length: Tensor

    def __init__(self, max_cache_len: int, state: CacheState) -> None:
        StaticLayer.__init__(self, max_cache_len)
        self.state, self.physical_length = state, 0
        self.has_own_rows = False
        self._forget()

    @property
    def room(self) -> int:
        """Slots of its buffers: the tokens that the cache is for, less those that were dropped here."""
        room: int = self.max_cache_len - self.lost
        return room

    @property
    def held_keys(self) -> Tensor | None:
        """``[B, G, physical_length, e]``: the keys of the slots in use."""
        return self.keys[:, :, : self.physical_length] if self.is_initialized and self.keys is not None else None

    def slot_columns(self, rows: int, device: torch.device) -> Tensor:
        """Return the logical column of every slot in use, ``[rows, physical_length]``."""
        return self.columns_of(self.physical_length, rows, device)

    def describe(self, columns: Tensor, *args: Any, **kwargs: Any) -> None:
        """Record what the slots stand for; contiguous, as it is once rows have changed places."""
        super().describe(columns.contiguous(), *args, **kwargs)
        self.has_own_rows = False

    def begin_filling(self, length: int) -> None:
        """Prepare for a prefill that follows ``length`` logical columns."""
        self.physical_length = length - self.lost

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make buffers as long as `room`, with what the old ones hold."""
        held = None if self.keys is None or self.values is None else (self.keys, self.values)
        used = slice(0, min(self.physical_length, self.room))
        self.dtype, self.device = key_states.dtype, key_states.device
        self.batch_size, self.num_heads = key_states.shape[:2]
        self.k_head_dim, self.v_head_dim = key_states.shape[-1], value_states.shape[-1]
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.keys, self.values = (
                torch.zeros((*like.shape[:2], self.room, like.shape[-1]), dtype=like.dtype, device=like.device)
                for like in (key_states, value_states)
            )
            if held is not None:
                self.keys[:, :, used], self.values[:, :, used] = (each[:, :, used] for each in held)
            self.cumulative_length = self.cumulative_length.to(self.device).clone()
        if not torch.compiler.is_compiling():
            # Steps that are captured as CUDA graphs write to where the buffers are.
            for tensor in (self.keys, self.values, self.cumulative_length):
                torch._dynamo.mark_static_address(tensor)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values behind the slots in use.

        Returns:
            The slots in use in a prefill, all slots otherwise.

        Raises:
            ValueError: No pruner is at work to keep lengths and masks in step with the dropped tokens, or there is no
                room for these.
        """
        if self.is_described and not self.state.is_open:
            refuse_plain()
        if self.state.is_open and not self.state.is_text:
            return self._fill(key_states, value_states)
        count = key_states.shape[-2]
        if not torch.compiler.is_compiling():
            check_room(self.physical_length + self.lost + count, self.max_cache_len)
            self.physical_length += count
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None  # there by now
        assert self.values is not None
        given = self.state.slots if self.is_described else None
        if given is None:
            slots = self.next_slots(count)
            self.cumulative_length.add_(count)
        else:
            slots = given[self.group].to(self.device)
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        return self.keys, self.values

    def next_slots(self, count: int) -> Tensor:
        """Return where the next ``count`` tokens go, ``[count]`` int64."""
        return torch.arange(count, device=self.cumulative_length.device) + (self.cumulative_length - self.lost)

    def _fill(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.keys.shape[2] != self.room:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None  # there by now
        assert self.values is not None
        own = slice(self.physical_length, self.physical_length + key_states.shape[-2])
        self.keys[:, :, own], self.values[:, :, own] = key_states, value_states
        self.physical_length = own.stop
        self.cumulative_length.fill_(own.stop + self.lost)
        return self.keys[:, :, : own.stop], self.values[:, :, : own.stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the size of the buffers."""
        return self.room, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder keys, values and row state, the first two where they are."""
        if self.is_initialized and self.keys is not None and self.values is not None:
            for held in (self.keys, self.values):
                held.copy_(held.index_select(0, beam_idx.to(held.device)))
        self._select(beam_idx)

    def _select(self, rows: Tensor) -> None:
        """Keep the state of some rows; where it is, if it can: steps that were recorded read it there."""
        before = self.row_state if self.has_own_rows else {}
        super()._select(rows)
        for name, new in self.row_state.items():
            old = before.get(name)
            # Tensors of inference mode could not be written to outside of it.
            if old is not None and old.shape == new.shape and old.is_inference() == new.is_inference():
                setattr(self, name, old.copy_(new))
        self.has_own_rows = True

    def reset(self) -> None:
        """Empty the layer and forget what was dropped. The buffers go: the next prompt's may have another size."""
        self.keys = self.values = None
        self.is_initialized, self.physical_length = False, 0
        super().reset()
        self._forget()


def is_static_pruned(layer: object) -> TypeGuard[PrunedStaticLayer]:
    """Return whether ``layer`` is one of fixed size that dropped tokens, or goes with layers that did."""
    return isinstance(layer, PrunedStaticLayer) and layer.is_described


def check_room(needed: int, room: int) -> None:
    """Raise unless a static cache has room for all tokens.

    Raises:
        ValueError: It has not.
    """
    if needed > room:
        raise ValueError(
            f"past_key_values must have room for all tokens of the prompt and of the answer, got a StaticCache of "
            f"{room} tokens for {needed}; give it a larger max_cache_len, which pruning does not lower"
        )


def static_layers(cache: StaticCache) -> list[PrunedStaticLayer]:
    """Return the layers of a static cache as pruned ones, with what they already hold; waits for the device if they
    do.
    """
    shared = next((layer.state for layer in cache.layers if isinstance(layer, PrunedStaticLayer)), CacheState())
    return [_converted(layer, shared) for layer in cache.layers]


_CONTENT = (
    "keys",
    "values",
    "device",
    "batch_size",
    "num_heads",
    "k_head_dim",
    "v_head_dim",
    "is_initialized",
)
"""What a fixed layer has once it holds something."""


def _converted(layer: Any, state: CacheState) -> PrunedStaticLayer:
    if isinstance(layer, PrunedStaticLayer):
        layer.state = state  # copies of single layers have others
        return layer
    pruned = PrunedStaticLayer(layer.max_cache_len, state)
    length = int(layer.get_seq_length()) if layer.is_initialized else 0
    if length:
        pruned.physical_length = length
        pruned.cumulative_length = torch.full_like(pruned.cumulative_length, length, device=layer.keys.device)
        for name in _CONTENT:
            setattr(pruned, name, getattr(layer, name))
        pruned.dtype = layer.keys.dtype  # a layer of transformers 5.24 does not say its dtype
    return pruned


STATIC_LAYERS = (StaticLayer, StaticSlidingWindowLayer, PrunedStaticLayer)
"""Kinds of fixed layers that can be pruned; a window is as long as its buffer, and a longer sequence is refused."""
