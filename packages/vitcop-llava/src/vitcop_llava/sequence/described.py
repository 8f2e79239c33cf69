"""What the slots of a cache layer stand for, and what the layers of a cache share: growing and fixed ones alike."""

from __future__ import annotations

from typing import Any, NoReturn, Self

import torch
from torch import Tensor


class CacheState:
    """What all layers of one cache share. Copies have one of their own, and are closed.

    Attributes:
        is_open: Whether a call of a pruned model is at work on the cache, and keeps lengths and masks in step.
        is_text: Whether that call continues what was pruned, and cuts nothing: what its layers need is on the cache.
        slots: ``[Q]`` int64 by group of layers: where the Q tokens of such a call go in a static cache, whose counters
            are past them; None otherwise.
        steps: What such a call gives each layer of a growing cache in place of the first one's arguments; None where
            all take the same.
    """

    def __init__(self) -> None:
        self.is_open = self.is_text = False
        self.slots: dict[int, Tensor] | None = None
        self.steps: tuple[dict[str, Any], ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(CacheState())

    def open(self, *, is_text: bool) -> None:
        """Let the layers take tokens."""
        self.is_open, self.is_text = True, is_text

    def close(self) -> None:
        """Undo `open`."""
        self.is_open = self.is_text = False
        self.slots = self.steps = None


class Described:
    """Which columns of a longer prompt the slots of a layer stand for.

    Attributes:
        state: What the layer shares with the cache's other layers.
        columns: ``[B, P]`` int64, the logical column of each of the first P slots; -1 for padding. Slots after those
            hold the columns that follow ``covered``, one each. None while nothing was dropped.
        is_described: Whether there are ``columns``. A graph that looked at them would be for their number alone.
        covered: Logical columns that the first P slots stand for.
        lost: Columns that no slot stands for: ``covered - P``.
        entry_dropped: ``[B, 1]`` int64 or an int: visual tokens that each row lost before the language model, by which
            a position id is smaller than the logical position.
        shift: Likewise, by which position ids of tokens that follow are smaller yet in this layer, where a method packs
            the positions of what its cuts leave.
        text_tail: Newest of the covered columns that hold text in every row, none of it dropped: a number, or int64 of
            no dimension.
        has_padding: Whether ``columns`` holds any padding.
        group: Layers of one group hold the same columns, and share their attention mask.
    """

    state: CacheState

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self), state=CacheState())
        return copied

    def _forget(self) -> None:
        self.columns: Tensor | None = None
        self.is_described = False
        self.covered = self.lost = 0
        self.entry_dropped: Tensor | int = 0
        self.shift: Tensor | int = 0
        self.text_tail: Tensor | int | None = None
        self.has_padding = False
        self.group = 0

    @property
    def described(self) -> int:
        """Slots that ``columns`` describes."""
        return 0 if self.columns is None else self.columns.shape[1]

    def describe(
        self,
        columns: Tensor,
        covered: int,
        entry_dropped: Tensor | int,
        text_tail: Tensor | int | None,
        *,
        has_padding: bool,
        group: int,
        shift: Tensor | int = 0,
    ) -> None:
        """Record what the slots stand for, just before the update that appends the last of them."""
        self.columns, self.covered, self.lost = columns, covered, covered - columns.shape[1]
        self.is_described = True
        self.entry_dropped, self.text_tail = entry_dropped, text_tail
        self.has_padding, self.group, self.shift = has_padding, group, shift

    def columns_of(self, slots: int, rows: int, device: torch.device) -> Tensor:
        """Return the logical column of each of the first ``slots`` slots, ``[rows, slots]`` int64, described or not."""
        tail = (torch.arange(slots - self.described, device=device) + self.covered).expand(rows, -1)
        return tail if self.columns is None else torch.cat([self.columns.expand(rows, -1), tail], dim=1)

    @property
    def row_state(self) -> dict[str, Tensor]:
        """What differs from row to row on the device, beside keys and values, by the name of the attribute."""
        held = {name: getattr(self, name) for name in ("columns", "entry_dropped", "shift")}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    def _select(self, rows: Tensor) -> None:
        """Keep the state of some rows."""
        for name, held in self.row_state.items():
            setattr(self, name, held.index_select(0, rows.to(held.device)))


def refuse_plain() -> NoReturn:
    """Raise for tokens of a model that is not pruned, which a pruned cache does not take."""
    raise ValueError(
        "past_key_values must be continued by a model that is pruned, got a cache that vitcop pruned, and a model that "
        "is not; call it inside `with vitcop_llava.prune(model, method)`, or start from a new cache"
    )
