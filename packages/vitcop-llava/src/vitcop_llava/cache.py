"""Cache layers that remember what they dropped.

Outside, a pruned cache has the length of the prompt that the caller sees (*logical*); inside, each layer holds the keys
and values of what survived there (*physical*). Row state (which logical column each slot stands for) lives in the layer,
so that beam search, row selection and two conversations side by side never mix it up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from vitcop_llava.state import active_call


class PrunedLayer(DynamicLayer):
    """A growing cache layer whose first slots stand for chosen columns of a longer prompt.

    Attributes:
        columns: ``[B, P]`` int64, the logical column of each of the first P slots; -1 for padding. Slots after those
            hold the columns that follow ``covered``, one each. None while nothing was dropped.
        covered: logical columns that the first P slots stand for.
        entry_dropped: ``[B, 1]`` int64 or an int: visual tokens that each row lost before the language model, by which
            a position id is smaller than the logical position.
        has_padding: whether ``columns`` holds any padding.
        group: layers of one group hold the same columns, and share their attention mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def _forget(self) -> None:
        self.columns: Tensor | None = None
        self.covered = 0
        self.entry_dropped: Tensor | int = 0
        self.has_padding = False
        self.group = 0

    @property
    def physical_length(self) -> int:
        """Slots in use."""
        return super().get_seq_length()

    @property
    def described(self) -> int:
        """Slots that ``columns`` describes."""
        return 0 if self.columns is None else self.columns.shape[1]

    def describe(
        self, columns: Tensor, covered: int, entry_dropped: Tensor | int, *, has_padding: bool, group: int
    ) -> None:
        """Records what the slots stand for, just before the update that appends the last of them."""
        self.columns, self.covered = columns, covered
        self.entry_dropped, self.has_padding, self.group = entry_dropped, has_padding, group

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Appends keys and values; refuses where no pruner keeps lengths and masks in step."""
        if self.columns is not None and active_call() is None:
            raise RuntimeError(
                "this cache was pruned by vitcop, and the model that continues it is not: "
                "call it inside `with vitcop_llava.prune(model, method)`, or start from a new cache"
            )
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys, values

    def get_seq_length(self) -> int:
        """The logical length: what the caller's prompt and the generated tokens add up to."""
        physical = self.physical_length
        return 0 if physical == 0 else physical - self.described + self.covered

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The physical sizes, which are those of the keys."""
        return self.physical_length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest tokens (a negative number of them), as far back as the last pruned prompt."""
        if -tokens_to_remove > self.physical_length - self.described:
            raise ValueError(
                f"tokens_to_remove: at most {self.physical_length - self.described} tokens follow the pruned prompt, "
                f"got {tokens_to_remove}; a pruned prompt cannot be cut in part"
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Empties the layer and forgets what was dropped."""
        super().reset()
        self._forget()

    def _select(self, rows: Tensor) -> None:
        if self.columns is not None:
            self.columns = self.columns.index_select(0, rows.to(self.columns.device))
        if isinstance(self.entry_dropped, Tensor):
            self.entry_dropped = self.entry_dropped.index_select(0, rows.to(self.entry_dropped.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorders keys, values and row state."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows of keys, values and row state."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of keys, values and row state."""
        super().batch_repeat_interleave(repeats)
        if self.columns is not None:
            self.columns = self.columns.repeat_interleave(repeats, dim=0)
        if isinstance(self.entry_dropped, Tensor):
            self.entry_dropped = self.entry_dropped.repeat_interleave(repeats, dim=0)


def check_cache(cache: object) -> None:
    """Raises unless ``cache`` can hold rows of different lengths in different layers.

    Raises:
        ValueError: for static, quantised, sliding-window and any other cache than a dynamic one.
    """
    if cache is None:
        return
    supported = "transformers.DynamicCache with full-attention layers"
    if not isinstance(cache, DynamicCache):
        raise ValueError(f"past_key_values: {type(cache).__name__} cannot be pruned, {supported} can")
    for index, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, PrunedLayer):
            raise ValueError(
                f"past_key_values: layer {index} is a {type(layer).__name__}, which cannot be pruned; {supported} can"
            )


def install_layers(cache: Cache, num_layers: int) -> list[PrunedLayer]:
    """Puts pruned layers in place of the plain ones, with what those already hold."""
    layers = list(cache.layers) + [DynamicLayer() for _ in range(num_layers - len(cache.layers))]
    cache.layers = [_converted(layer) for layer in layers]
    return cache.layers


def _converted(layer: DynamicLayer) -> PrunedLayer:
    if isinstance(layer, PrunedLayer):
        return layer
    pruned = PrunedLayer()
    if layer.is_initialized and layer.keys is not None and layer.keys.numel() > 0:
        pruned.lazy_initialization(layer.keys, layer.values)
        pruned.keys, pruned.values = layer.keys, layer.values
    return pruned


def slot_columns(layer: PrunedLayer, rows: int, device: torch.device) -> Tensor:
    """The logical column of every slot of a layer, ``[B, physical]``, those after the described ones included."""
    tail = torch.arange(layer.physical_length - layer.described, device=device) + layer.covered
    tail = tail.expand(rows, -1)
    return tail if layer.columns is None else torch.cat([layer.columns, tail], dim=1)
