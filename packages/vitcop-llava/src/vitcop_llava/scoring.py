"""What a cut inside the language model may ask for: rows of attention, computed from queries and keys when it asks.

Only those rows are needed, so they come out the same under any attention backend, and none is forbidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcop_core import PromptView
from vitcop_llava.cache import PrunedLayer
from vitcop_llava.families import Parts
from vitcop_llava.masks import slot_padding
from vitcop_llava.rope import rotate, row_attention
from vitcop_llava.sequence import Segment, places_of, take, visual_mask
from vitcop_llava.state import Run


def own_padding(run: Run, segment: Segment) -> Tensor | None:
    """Which of a segment's own slots may be attended to, ``[B, P]`` bool; None for all of them."""
    columns = segment.columns + run.past
    if segment.valid is not None:
        columns = columns.masked_fill(~segment.valid, -1)
    return slot_padding(columns, run.attention_mask, has_padding=segment.valid is not None)


def text_slots(run: Run, segment: Segment) -> tuple[Tensor, Tensor]:
    """The slots of the text after the last image, or of the prompt's last token where there is none.

    Args:
        run: The call, whose first segment tells where the last image ends.
        segment: One of its segments. Text is never cut, so each has as much of it.

    Returns:
        ``[B, t]`` int64 slots, ascending, arbitrary past a row's own number; ``[B]`` int64 that number.
    """
    entry = run.segments[0]
    ends = entry.columns.masked_fill(~visual_mask(entry), -1).amax(dim=1, keepdim=True)
    padding = own_padding(run, segment)
    real = torch.ones_like(segment.columns, dtype=torch.bool) if padding is None else padding
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
        keys: ``[B, G, S, e]``, the keys of the layer before it.
        rotate_keys: Whether they are still to be rotated (then S is P).
    """

    parts: Parts
    run: Run
    index: int
    hidden: Tensor
    keys: Tensor
    rotate_keys: bool

    @torch.no_grad()
    def of_text(self, rows: Tensor) -> Tensor:
        """See :attr:`DecoderView.attention_of`."""
        run, segment = self.run, self.run.segment
        assert run.rotary is not None  # set by the first layer
        places, counts = text_slots(run, segment)
        weights = rows & (torch.arange(rows.shape[1], device=rows.device) < counts[:, None])
        queries = self._queries(take(run.projections["q_proj"], places), places, run.rotary)
        cosines, sines = self._turns(run.rotary)
        keys = rotate(self.keys, cosines, sines) if self.rotate_keys else self.keys
        padding = None if run.keys is None else run.keys.padding
        return self._visual(queries, keys, places, weights.float(), self.index - 1, padding)

    @torch.no_grad()
    def of_own_layer(self) -> Tensor:
        """See :attr:`DecoderView.own_attention`."""
        run, segment = self.run, self.run.segment
        layer: Any = self.parts.decoder_layers[self.index]
        attention = layer.self_attn
        padding = own_padding(run, segment)
        place = self._last(padding)
        normed = layer.input_layernorm(self.hidden)
        rotary = self._own_rotary()
        keys = attention.k_proj(normed).unflatten(-1, (self.parts.shape.num_kv_heads, -1)).transpose(1, 2)
        keys = rotate(keys, *self._turns(rotary))
        queries = self._queries(attention.q_proj(take(normed, place)), place, rotary)
        held = None if run.layers is None else run.layers[self.index]
        if held is not None and held.physical_length:
            assert held.keys is not None  # it has a length
            keys = torch.cat([held.keys.to(keys.device), keys], dim=2)
            padding = self._with_past(held, padding)
        weights = torch.ones_like(place, dtype=torch.float32)
        return self._visual(queries, keys, place, weights, self.index, padding)

    def _with_past(self, held: PrunedLayer, padding: Tensor | None) -> Tensor | None:
        """The padding of a layer's cache and of the segment that is to follow, ``[B, S]``; None for none."""
        rows, slots = self.run.segment.columns.shape
        columns = held.slot_columns(rows, self.hidden.device)
        past = slot_padding(columns, self.run.attention_mask, has_padding=held.has_padding)
        if past is None and padding is None:
            return None
        past = torch.ones_like(columns, dtype=torch.bool) if past is None else past
        return torch.cat([past, past.new_ones(rows, slots) if padding is None else padding], dim=1)

    def prompt(self) -> PromptView:
        """See :attr:`DecoderView.prompt`."""
        run, entry = self.run, self.run.segments[0]
        assert run.entry is not None  # kept where a cut of this run asks for it
        places, counts = text_slots(run, entry)
        return PromptView(take(run.entry, entry.visual), entry.lengths, take(run.entry, places), counts)

    def _last(self, padding: Tensor | None) -> Tensor:
        """``[B, 1]`` int64: the slot of the last prompt token."""
        rows, slots = self.run.segment.columns.shape
        number = torch.arange(slots, device=self.hidden.device)
        return number[-1:].expand(rows, 1) if padding is None else (padding * number).amax(dim=1, keepdim=True)

    def _own_rotary(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the uncut segment in the layer after the cut, which may have packed more before."""
        run = self.run
        assert run.rotary is not None  # set by the first layer
        step = run.shift_step(self.index)
        if isinstance(step, int) and step == 0:
            return run.rotary
        rotary: tuple[Tensor, Tensor] = self.parts.rotary(self.hidden, run.segment.position_ids - step)
        return rotary

    def _turns(self, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rows = self.run.segment.columns.shape[0]
        cosines, sines = (part.expand(rows, -1, -1) for part in rotary)
        return cosines, sines

    def _queries(self, projected: Tensor, places: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """``[B, R, H e]`` at slots [B, R] to rotated ``[B, H, R, e]``."""
        queries = projected.unflatten(-1, (self.parts.shape.num_heads, -1)).transpose(1, 2)
        cosines, sines = (take(part, places) for part in self._turns(rotary))
        return rotate(queries, cosines, sines)

    def _visual(
        self, queries: Tensor, keys: Tensor, places: Tensor, weights: Tensor, layer: int, padding: Tensor | None
    ) -> Tensor:
        """``[B, n]``: the rows' mean attention to the visual tokens."""
        segment = self.run.segment
        attention: Any = self.parts.decoder_layers[layer].self_attn
        places = places + keys.shape[2] - segment.slots
        mean = row_attention(queries, keys, places, weights, scale=attention.scaling, padding=padding)
        return mean[:, -segment.slots :].gather(1, segment.visual)
