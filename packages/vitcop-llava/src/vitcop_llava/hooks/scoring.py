"""What a cut inside the language model may ask for: rows of attention, computed from queries and keys when it asks.

Only those rows are needed, so they come out the same under any attention backend, and none is forbidden. Queries and
keys are projected again from what a layer was given, by the modules that it has at that moment.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vitcop_core import PromptView
from vitcop_core.tokens import places_of
from vitcop_llava.families import Parts
from vitcop_llava.families.decoder import head_states, rotate
from vitcop_llava.hooks.runs import Prefill
from vitcop_llava.sequence.cache import HeldLayer
from vitcop_llava.sequence.masks import slot_padding
from vitcop_llava.sequence.rotary import row_attention
from vitcop_llava.sequence.segment import Segment, take, visual_mask
from vitcop_llava.weights.offloading import weights_in_place


def own_padding(run: Prefill, segment: Segment) -> Tensor | None:
    """Return which of a segment's own slots may be attended to, ``[B, P]`` bool; None for all of them."""
    if segment.valid is None and run.attention_mask is None:
        return None
    columns = segment.columns + run.past
    if segment.valid is not None:
        columns = columns.masked_fill(~segment.valid, -1)
    return slot_padding(columns, run.attention_mask, has_padding=segment.valid is not None)


def prompt_slots(run: Prefill, segment: Segment) -> Tensor | None:
    """Return which of a segment's slots are the prompt's, ``[B, P]`` bool: no padding, and nothing that continues the
    prompt; None for all of them.
    """
    padding = own_padding(run, segment)
    if not run.continuation:
        return padding
    is_prompt = segment.columns < run.length - run.continuation
    return is_prompt if padding is None else is_prompt & padding


def last_slot(run: Prefill, segment: Segment) -> Tensor:
    """Return ``[B, 1]`` int64: the slot of the prompt's last token."""
    number = torch.arange(segment.slots, device=segment.columns.device)
    own = prompt_slots(run, segment)
    if own is None:
        return number[-1:].expand(segment.columns.shape[0], 1)
    return (own * number).amax(dim=1, keepdim=True)


def text_slots(run: Prefill, segment: Segment) -> tuple[Tensor, Tensor]:
    """Return the slots of the prompt's text after the last image, or of its last token where there is none.

    Args:
        run: The call, whose first segment tells where the last image ends.
        segment: One of its segments. Text is never cut, so each has as much of it.

    Returns:
        ``[B, t]`` int64 slots, ascending, arbitrary past a row's own number; ``[B]`` int64 that number.
    """
    entry = run.segments[0]
    ends = entry.columns.masked_fill(~visual_mask(entry), -1).amax(dim=1, keepdim=True)
    own = prompt_slots(run, segment)
    real = torch.ones_like(segment.columns, dtype=torch.bool) if own is None else own
    text = real & (segment.columns > ends)
    number = torch.arange(segment.slots, device=text.device)
    last = number == (real * number).amax(dim=1, keepdim=True)
    text = torch.where(text.any(dim=1, keepdim=True), text, last)
    most = max(1, *(slots - visual for slots, visual in zip(run.slots, run.visual, strict=True)))
    return places_of(text, most), text.sum(dim=1)


@dataclass(frozen=True, eq=False)
class Scoring:
    """The rows of attention around one cut.

    Attributes:
        parts: The model.
        run: The call; its segment is the one that is to be cut.
        index: The layer that the cut stands before.
        hidden: ``[B, P, d]``, the input of that layer before the cut.
        held: ``[B, G, S, e]``, the keys of the layer before it, rotated, S >= P; None where there is no cache.
    """

    parts: Parts
    run: Prefill
    index: int
    hidden: Tensor
    held: Tensor | None

    @cached_property
    def own_keys(self) -> Tensor:
        """``[B, G, P, e]``: the keys of the segment in the layer before the cut, rotated where a cache holds them."""
        if self.held is not None:
            return self.held[:, :, -self.run.segment.slots :]
        with torch.no_grad(), self._weights(self.index - 1):
            return head_states(self._attention(self.index - 1), self._normed_before, "k").transpose(1, 2)

    @torch.no_grad()
    def of_last(self) -> Tensor:
        """See :attr:`DecoderView.attention`."""
        place = last_slot(self.run, self.run.segment)
        return self._before(place, torch.ones_like(place, dtype=torch.float32))

    @torch.no_grad()
    def of_text(self, rows: Tensor) -> Tensor:
        """See :attr:`DecoderView.attention_of`."""
        places, counts = text_slots(self.run, self.run.segment)
        weights = rows & (torch.arange(rows.shape[1], device=rows.device) < counts[:, None])
        return self._before(places, weights.float())

    @torch.no_grad()
    def of_own_layer(self) -> Tensor:
        """See :attr:`DecoderView.own_attention`."""
        run, segment = self.run, self.run.segment
        attention, padding = self._attention(self.index), own_padding(run, segment)
        place = last_slot(run, segment)
        rotary = self._own_rotary()
        with self._weights(self.index):
            normed = self._normed(self.index, self.hidden)
            keys = rotate(attention, head_states(attention, normed, "k").transpose(1, 2), *self._turns(rotary))
            queries = self._queries(attention, take(normed, place), place, rotary)
        held = run.layers[self.index] if run.layers else None
        if held is not None and held.physical_length:
            assert held.held_keys is not None  # it has a length
            keys = torch.cat([held.held_keys.to(keys.device), keys], dim=2)
            padding = self._with_past(held, padding)
        weights = torch.ones_like(place, dtype=torch.float32)
        return self._visual(queries, keys, place, weights, attention, padding)

    def prompt(self) -> PromptView:
        """See :attr:`DecoderView.prompt`."""
        run, entry = self.run, self.run.segments[0]
        if run.entry is None:
            raise RuntimeError("DecoderView.prompt: is kept where Method.needs_prompt says that a cut reads it")
        places, counts = text_slots(run, entry)
        return PromptView(entry.visual_of(run.entry), entry.lengths, take(run.entry, places), counts)

    def _before(self, places: Tensor, weights: Tensor) -> Tensor:
        """Return ``[B, n]``: what slots [B, R] pay to the visual tokens in the layer before the cut, weighted by [B,
        R].
        """
        run, attention = self.run, self._attention(self.index - 1)
        keys = self.held
        if keys is None:
            keys = rotate(attention, self.own_keys, *self._turns(run.rotary))
        with self._weights(self.index - 1):
            queries = self._queries(attention, take(self._normed_before, places), places, run.rotary)
        return self._visual(queries, keys, places, weights, attention, run.keys.padding)

    @cached_property
    def _normed_before(self) -> Tensor:
        """``[B, P, d]``: what the attention of the layer before the cut was called with."""
        assert self.run.before is not None  # kept by that layer's hook
        return self._normed(self.index - 1, self.run.before)

    def _attention(self, layer: int) -> Any:
        return self.parts.decoder_layers[layer].self_attn

    def _weights(self, layer: int) -> AbstractContextManager[None]:
        return weights_in_place(self.parts.decoder_layers[layer], self._attention(layer))

    def _normed(self, layer: int, hidden: Tensor) -> Tensor:
        norm: Any = getattr(self.parts.decoder_layers[layer], "input_layernorm", None)
        return hidden if norm is None else norm(hidden)  # some norm after their attention

    def _with_past(self, held: HeldLayer, padding: Tensor | None) -> Tensor | None:
        """Return the padding of a layer's cache and of the segment that is to follow, ``[B, S]``; None for none."""
        rows, slots = self.run.segment.columns.shape
        columns = held.slot_columns(rows, self.hidden.device)
        past = slot_padding(columns, self.run.attention_mask, has_padding=held.has_padding)
        if past is None and padding is None:
            return None
        past = torch.ones_like(columns, dtype=torch.bool) if past is None else past
        return torch.cat([past, past.new_ones(rows, slots) if padding is None else padding], dim=1)

    def _own_rotary(self) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of the uncut segment in the layer after the cut, which may have packed more
        before.
        """
        run = self.run
        step = run.shift_step(self.index)
        if isinstance(step, int) and step == 0:
            return run.rotary
        rotary: tuple[Tensor, Tensor] = self.parts.rotary(self.hidden, run.segment.position_ids - step)
        return rotary

    def _turns(self, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rows = self.run.segment.columns.shape[0]
        cosines, sines = (part.expand(rows, -1, -1) for part in rotary)
        return cosines, sines

    def _queries(self, attention: Any, normed: Tensor, places: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Turn normed inputs ``[B, R, d]`` of slots [B, R] into rotated queries ``[B, H, R, e]``."""
        queries = head_states(attention, normed, "q").transpose(1, 2)
        cosines, sines = (take(part, places) for part in self._turns(rotary))
        return rotate(attention, queries, cosines, sines)

    def _visual(
        self, queries: Tensor, keys: Tensor, places: Tensor, weights: Tensor, attention: Any, padding: Tensor | None
    ) -> Tensor:
        """Return ``[B, n]``: the rows' mean attention to the visual tokens."""
        segment = self.run.segment
        places = places + keys.shape[2] - segment.slots
        mean = row_attention(queries, keys, places, weights, scale=attention.scaling, padding=padding)
        return segment.visual_of(mean[:, -segment.slots :])
