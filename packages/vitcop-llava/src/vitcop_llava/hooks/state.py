"""What one forward pass knows. Held per call: threads and nested models never share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vitcop_core import Plan
from vitcop_llava.hooks.kept import Kept, PlannedImage
from vitcop_llava.hooks.patching import HookSwitch
from vitcop_llava.hooks.reading import HostPrompt
from vitcop_llava.sequence.cache import HeldLayer, KeyTap
from vitcop_llava.sequence.segment import Segment


@dataclass(eq=False)
class EncodedImages:
    """What Stage I kept of every image of a call, or of every clip; travels with the encoder's output object.

    Attributes:
        owner: The number of the pruner under which the images were encoded. A number, because `generate` copies tower
            outputs deeply for an assistant, and a reference to the pruner would take the model along.
        images: What the images are, in order.
        kept: The patches that stay, of images of which that is all there is to say.
        coded: ``[placeholders]`` int64 over all images, once they are asked for or where ``kept`` does not tell; see
            ``codes``.
        labels: Clusters of each image; empty where nothing was clustered.
        keys: ``[n1, d_v]``, the keys of the first unit's kept patches, to check the cutoff distance by; None where
            nothing was clustered.
        kind: ``"image"``, or ``"video"`` for clips.
        unreplayed: Why the tower's layers were run as they are, where they were to be replayed.
    """

    owner: int
    kind: str = "image"
    images: tuple[PlannedImage, ...] = ()
    kept: Kept | None = None
    coded: Tensor | None = None
    labels: tuple[int, ...] = ()
    keys: Tensor | None = None
    unreplayed: str | None = None

    @property
    def codes(self) -> Tensor | None:
        """``[placeholders]`` int64 over all images: the cluster of each visual token that stays, counted over the call
        (0 where nothing was clustered); `DROPPED`, or `NEWLINE` for a newline that stays. None where all stay.
        """
        if self.coded is None and self.kept is not None:
            self.coded = self.kept.codes()
        return self.coded


@dataclass(eq=False)
class TowerPass:
    """What is on its way from the tower's forward to the end of the projector's.

    Attributes:
        encoded: Stage I's result, in the making.
        normed: ``[C, 1 + M, d_v]``, what the scored layer's attention was called with; None before it was.
        feature: ``[C, 1 + M, d_v]``, that layer's output.
        places: ``[N]`` int64, the kept patches, numbered over all units; None where all are.
        patches: Units, and patches of each.
    """

    encoded: EncodedImages
    normed: Tensor | None = None
    feature: Tensor | None = None
    places: Tensor | None = None
    patches: tuple[int, ...] = (0, 0)


@dataclass(eq=False)
class Source:
    """The images of a call, or its clips.

    Attributes:
        where: ``[B, L]`` bool, where their placeholders stand; those of an image that the attention mask hides apart,
            once that is known: a hidden image is an absent one.
        encoded: Stage I's result; None until they are encoded.
        origin: Which encoded one each of the batch is, where `generate` repeated them or the mask hides some; None: one
            to one.
        repeats: How often `generate` repeated each row, where that has yet to be resolved; 1 otherwise.
    """

    where: Tensor
    encoded: EncodedImages | None = None
    origin: list[int] | None = None
    repeats: int = 1

    @property
    def numbers(self) -> list[int]:
        """Which encoded one each of the batch is."""
        return list(range(len(self.results.images))) if self.origin is None else self.origin

    @property
    def images(self) -> list[PlannedImage]:
        """Those of the batch, in order."""
        return [self.results.images[number] for number in self.numbers]

    @property
    def results(self) -> EncodedImages:
        """Stage I's result, which is there once the language model runs."""
        assert self.encoded is not None  # transformers encodes before it calls the language model
        return self.encoded

    def batch_codes(self, codes: Tensor) -> list[Tensor]:
        """The codes of each image of the batch, clusters counted over the batch where anything was clustered."""
        encoded, before = self.results, 0
        each = codes.split([image.tiling.placeholders for image in encoded.images])
        firsts, found = list(accumulate(encoded.labels, initial=0)), []
        for image in self.numbers:
            own = each[image]
            if encoded.labels:
                own = torch.where(own >= 0, own + (before - firsts[image]), own)
                before += encoded.labels[image]
            found.append(own)
        return found


@dataclass(frozen=True)
class Rows:
    """How many images and tokens each row holds, on the host.

    Attributes:
        counts: For each source, how many images or clips each row holds; they follow each other in the order of the
            batch.
        tokens: Attended tokens of each row, visual and text; None where rows are alike and nothing needs to be known.
        span: The columns of the images, where they are one run that is the same in all rows, which are alike.
        first: The position id that all rows count from, by one at every token; None where they do not, or there are
            none.
    """

    counts: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...] | None = None
    span: range | None = None
    first: int | None = None


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


@dataclass(eq=False)
class Group:
    """Consecutive layers of the decoder that were replayed as one.

    Attributes:
        first: The first of them.
        stop: The first that is none of them any more.
        held: ``[2 l, B, G, P, e]``, keys and values of the l layers in turn; None where there are none.
    """

    first: int = 0
    stop: int = 0
    held: Tensor | None = None


@dataclass(eq=False)
class Replay:
    """What a prefill whose segments may be replayed knows of that.

    Attributes:
        alone: Layers that a cut reads the attention of: they run by themselves.
        is_off: Whether every layer has to run as it is.
        obstacle: Why a layer did; None where all were replayed.
        group: The layers that were replayed last.
    """

    alone: frozenset[int] = frozenset()
    is_off: bool = False
    obstacle: str | None = None
    group: Group = field(default_factory=Group)


@dataclass(eq=False)
class Run:
    """The language model's part of a call.

    Attributes:
        layers: The layers of the cache, or None with ``use_cache=False``.
        attention_mask: The caller's ``[B, past + L]`` mask, or None, also where it is all ones.
        past: Columns before this call.
        continuation: Columns at the end of this call that follow the prompt: candidates of assisted decoding.
        entry_dropped: Visual tokens that each row has lost before the language model, earlier calls included.
        text_tail: Columns at the end of this call that hold text in every row, none dropped: a number, or int64 of no
            dimension.
        numbers: ``[L]`` int64, counting from 0, where the images of all rows stand at the same columns; else None.
        length: Columns of this call.
        cut_layers: The layers before which tokens are cut: where each segment but the first begins.
        segments: What the layers run on, the current one last; empty while continuing from a pruned cache.
        keys: What the current segment attends to.
        rotary: Cosines and sines of the current segment.
        given: What the layers of the current segment are given in place of the first one's arguments.
        clusters: The most clusters of any row.
        labels: ``[B, N]`` int64, clusters of the current segment's visual tokens (over the row), or None.
        visual: Visual tokens of each row in the current segment.
        slots: Physical tokens of each row in the current segment.
        masks: The mask of each group of layers, while continuing from a pruned cache.
        before: ``[B, P, d]``, the input of the layer before a cut.
        tap: What that layer's keys are caught in, where there is no cache.
        ran: Layers that have run.
        entry: ``[B, P, d]``, the embeddings of the first segment, where a cut asks for them.
        notes: What a method's cuts tell those that follow.
        packed: By how much tokens after the current segment's images are numbered lower than at the entry, for what
            cuts of this call dropped and packed: an int, or ``[B, 1]`` int64.
        shifts: The same of each layer for earlier calls.
        positions: The caller's position ids, less what was lost at the entry, while continuing from a pruned cache.
        rotaries: Cosines and sines of each group of layers whose positions are packed, while continuing.
        is_plain: While continuing: whether no layer needs anything but what the first is given.
        held: The hooks of the decoder layers, which this keeps on; None where they need none.
        replay: How segments are replayed; None where nobody asked for it.
    """

    layers: Sequence[HeldLayer] | None
    attention_mask: Tensor | None
    past: int
    continuation: int = 0
    entry_dropped: Tensor | int = 0
    text_tail: Tensor | int | None = None
    numbers: Tensor | None = None
    length: int = 0
    cut_layers: tuple[int, ...] = ()
    segments: list[Segment] = field(default_factory=list)
    keys: Keys | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    given: dict[str, Any] = field(default_factory=dict)
    clusters: int = 0
    labels: Tensor | None = None
    visual: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    masks: dict[int, Any] = field(default_factory=dict)
    before: Tensor | None = None
    tap: KeyTap | None = None
    ran: int = 0
    entry: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    packed: Tensor | int = 0
    shifts: list[Tensor | int] = field(default_factory=list)
    positions: Tensor | None = None
    rotaries: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    is_plain: bool = False
    held: HookSwitch | None = None
    replay: Replay | None = None

    @property
    def segment(self) -> Segment:
        """What the layers run on now."""
        return self.segments[-1]

    def segment_of(self, layer: int) -> Segment:
        """What ``layer`` ran on."""
        return self.segments[sum(layer >= cut for cut in self.cut_layers)]

    def shift_step(self, layer: int) -> Tensor | int:
        """By how much earlier calls packed more in ``layer`` than in the one before it."""
        return self.shifts[layer] - self.shifts[layer - 1] if self.shifts else 0

    def release(self) -> None:
        """Lets go of everything that only the forward needed, the cache above all."""
        for layer in self.layers or ():
            layer.is_open = False
        if self.held is not None:
            self.held.let_go()
            self.held = None
        self.layers = self.attention_mask = self.keys = self.rotary = self.entry = self.positions = self.before = (
            self.tap
        ) = None
        if self.replay is not None:
            self.replay.group = Group()
        self.shifts, self.given = [], {}
        self.notes.clear()
        self.rotaries.clear()
        self.masks.clear()


@dataclass(eq=False)
class Call:
    """One forward of the base module, with everything its hooks hand to each other.

    Attributes:
        owner: The number of the pruner whose hooks run.
        outer: The call that was active before, put back at the end.
        is_fresh: Whether the prompt starts here: there is no cache, or an empty one.
        past: Tokens in the cache, dropped ones included.
        continuation: Columns at the end that follow the prompt: candidates of assisted decoding, or an answer whose
            likelihood is asked for.
        placeholders: ``[B, L]`` bool, where this call's placeholders stand, of every kind; None for a call without
            images and clips.
        sources: Its images and its clips, by kind, images first.
        seen: What was read of its prompt; None where nothing can be read, or it has no images.
        rows: The layout.
        plans: The plan of each row; None for a row without images.
        run: The language model's part.
    """

    owner: int
    outer: Call | None = None
    is_fresh: bool = True
    past: int = 0
    continuation: int = 0
    placeholders: Tensor | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    seen: HostPrompt | None = None
    rows: Rows | None = None
    plans: tuple[Plan | None, ...] = ()
    run: Run | None = None

    def take(self, encoded: EncodedImages) -> None:
        """Notes what was encoded on the way to the language model."""
        if encoded.kind in self.sources:
            self.sources[encoded.kind].encoded = encoded
