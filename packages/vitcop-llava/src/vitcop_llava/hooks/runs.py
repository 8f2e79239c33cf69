"""The language model's part of a call: a prefill that is cut, or what follows in a cache that was cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from vitcop_llava.hooks.patching import HookSwitch
from vitcop_llava.sequence.cache import HeldLayer, KeyTap
from vitcop_llava.sequence.deepstack import Deepstack
from vitcop_llava.sequence.segment import Segment


@dataclass(frozen=True, eq=False)
class Keys:
    """What the queries of a segment attend to: the slots that its layers hold, and the segment's own.

    Attributes:
        columns: ``[B, S]`` int64, the logical column of each slot, -1 for padding.
        has_padding: Whether ``columns`` may hold -1.
        padding: ``[B, S]`` bool, False where nothing may be attended to; None where everything may.
        mask: The same with causality, in the attention backend's form.
    """

    columns: Tensor
    has_padding: bool
    padding: Tensor | None
    mask: Any


@dataclass(frozen=True, eq=False)
class Group:
    """Consecutive layers of the decoder that were replayed as one.

    Attributes:
        first: The first of them.
        stop: The first that is none of them any more.
        held: ``[2 l, B, G, P, e]``, keys and values of the l layers in turn.
    """

    first: int
    stop: int
    held: Tensor


@dataclass(eq=False)
class Replay:
    """What a prefill whose segments may be replayed knows of that.

    Attributes:
        alone: Layers that a cut reads the attention of: they run by themselves.
        is_off: Whether every layer has to run as it is.
        obstacle: Why a layer did; None where all were replayed.
        group: The layers that were replayed last, if any.
    """

    alone: frozenset[int] = frozenset()
    is_off: bool = False
    obstacle: str | None = None
    group: Group | None = None


@dataclass(frozen=True, eq=False)
class Aligned:
    """What is known of rows whose images stand at the same columns.

    Attributes:
        span: The columns of the images.
        numbers: ``[L]`` int64, counting from 0.
    """

    span: range
    numbers: Tensor


@dataclass(eq=False)
class Run:
    """The language model's part of a call that prunes, or continues what was pruned.

    Used as it is by text that continues a cache, which holds all that its layers need. A lone token has none.

    Attributes:
        layers: The layers of the cache; empty with ``use_cache=False``.
    """

    layers: Final[Sequence[HeldLayer]]

    def open(self, *, is_text: bool = False) -> None:
        """Let the layers take tokens; see `CacheState`."""
        if self.layers:
            self.layers[0].state.open(is_text=is_text)

    def close(self) -> None:
        """Undo `open`."""
        if self.layers:
            self.layers[0].state.close()


@dataclass(eq=False)
class Prefill(Run):
    """A prompt with images: it is cut.

    Attributes:
        attention_mask: The caller's ``[B, past + L]`` mask, or None, also where it is all ones.
        past: Columns before this call.
        length: Columns of this call.
        continuation: Columns at the end of this call that follow the prompt: candidates of assisted decoding.
        placeholders: ``[B, L]`` bool, where placeholders stand whose images the mask does not hide.
        cut_layers: The layers before which tokens are cut: where each segment but the first begins.
        entry_dropped: Visual tokens that each row has lost before the language model, earlier calls included; 0 where
            tokens keep their positions.
        keeps_positions: Whether they do, whatever is dropped before them.
        shifts: By how much earlier calls packed the positions in each layer; empty without a cache.
        visual: Visual tokens of each row in the current segment.
        slots: Physical tokens of each row in the current segment.
        segments: What the layers run on, the current one last.
        text_tail: Columns at the end of this call that hold text in every row, none dropped: a number, or int64 of no
            dimension.
        clusters: The most clusters of any row.
        labels: ``[B, N]`` int64, clusters of the current segment's visual tokens (over the row), or None.
        aligned: Where the images of all rows stand at the same columns; else None.
        keys: What the current segment attends to.
        rotary: Cosines and sines of the current segment, once the first layer is called.
        given: What the layers of the current segment are given in place of the first one's arguments.
        before: ``[B, P, d]``, the input of the layer before a cut, from that layer to the cut.
        tap: What that layer's keys are caught in, where there is no cache.
        ran: Layers that have run.
        entry: ``[B, P, d]``, the embeddings of the first segment, where a cut asks for them.
        notes: What a method's cuts tell those that follow.
        packed: By how much tokens after the current segment's images are numbered lower than at the entry, for what
            cuts of this call dropped and packed: an int, or ``[B, 1]`` int64.
        replay: How segments are replayed; None where nobody asked for it.
        deepstack: What the first layers add to the visual tokens; None where they add nothing.
        switch: The hooks of the decoder layers, once this keeps them on.
    """

    attention_mask: Final[Tensor | None]
    past: Final[int]
    length: Final[int]
    continuation: Final[int]
    placeholders: Final[Tensor]
    cut_layers: Final[tuple[int, ...]]
    entry_dropped: Final[Tensor | int]
    keeps_positions: Final[bool]
    shifts: Final[list[Tensor | int]]
    visual: list[int]
    slots: list[int]
    segments: Final[list[Segment]] = field(default_factory=list)
    text_tail: Tensor | int | None = None
    clusters: int = 0
    labels: Tensor | None = None
    aligned: Aligned | None = None
    keys: Keys = field(init=False)
    rotary: tuple[Tensor, Tensor] = field(init=False)
    given: dict[str, Any] = field(default_factory=dict)
    before: Tensor | None = None
    tap: KeyTap | None = None
    ran: int = 0
    entry: Tensor | None = None
    notes: Final[dict[str, Tensor]] = field(default_factory=dict)
    packed: Tensor | int = 0
    replay: Replay | None = None
    deepstack: Deepstack | None = None
    switch: HookSwitch | None = None

    def hold(self, switch: HookSwitch) -> None:
        """Leave the hooks of the decoder layers on until this closes."""
        switch.hold()
        self.switch = switch

    def close(self) -> None:
        """Undo `open` and `hold`."""
        super().close()
        if self.switch is not None:
            self.switch.let_go()
            self.switch = None

    @property
    def segment(self) -> Segment:
        """What the layers run on now."""
        return self.segments[-1]

    def segment_of(self, layer: int) -> Segment:
        """Return what ``layer`` ran on."""
        return _segment_of(layer, self.segments, self.cut_layers)

    def shift_step(self, layer: int) -> Tensor | int:
        """Return by how much earlier calls packed more in ``layer`` than in the one before it."""
        return self.shifts[layer] - self.shifts[layer - 1] if self.shifts else 0


@dataclass(frozen=True, eq=False)
class Trace:
    """What is left of a prefill when the forward is over.

    Attributes:
        cut_layers: The layers before which tokens were cut.
        segments: What stood where: at the entry, and after each cut.
        unreplayed: Why a layer ran as it is that was to be replayed; None where all were, or nobody asked for it.
        held: Tokens that each layer's cache holds; empty where it held none before, or none now.
    """

    cut_layers: tuple[int, ...]
    segments: Sequence[Segment]
    unreplayed: str | None
    held: tuple[int, ...] = ()

    def lengths(self, num_layers: int) -> tuple[int, ...]:
        """Return the tokens that each layer ran on, padding included."""
        if len(self.segments) <= len(self.cut_layers):  # it failed on the way
            return ()
        return tuple(_segment_of(layer, self.segments, self.cut_layers).slots for layer in range(num_layers))


def _segment_of(layer: int, segments: Sequence[Segment], cut_layers: Sequence[int]) -> Segment:
    return segments[sum(layer >= cut for cut in cut_layers)]
