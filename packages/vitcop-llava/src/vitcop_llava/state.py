"""What one forward pass knows. Held per call, in a context variable: threads and nested models never share it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from vitcop_core import Plan

from vitcop_llava.sequence import Segment


@dataclass(eq=False)
class EncodedImages:
    """What Stage I kept of every image of a call; travels with the tower's output object.

    Attributes:
        owner: the pruner under which the images were encoded.
        tokens: visual tokens m of an image before any cut.
        index: ``[C, n1]`` int64, the kept patches of each image in raster order; None where all were kept.
        labels: ``[C, n1]`` int64, their clusters, counted from 0 in each image; None where nothing was clustered.
        clusters: clusters of each image.
        features: ``[n1, d_v]``, what the first image was clustered by (for the check of the cutoff distance).
    """

    owner: object
    tokens: int = 0
    count: int = 0
    index: Tensor | None = None
    labels: Tensor | None = None
    clusters: int = 0
    features: Tensor | None = None

    @property
    def kept(self) -> int:
        """Visual tokens of an image after Stage I."""
        return self.tokens if self.index is None else self.index.shape[1]


@dataclass(eq=False)
class TowerPass:
    """Queries, keys and output of the scored vision layer, from the tower's forward to the projector's."""

    encoded: EncodedImages
    queries: Tensor | None = None
    keys: Tensor | None = None
    feature: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """How many images and tokens each row holds, on the host.

    Attributes:
        images: images of each row.
        tokens: attended tokens of each row, visual and text; None where rows are alike and nothing needs to be known.
    """

    images: tuple[int, ...]
    tokens: tuple[int, ...] | None = None

    @property
    def uniform(self) -> bool:
        """Whether all rows hold the same number of images, so that one length fits all."""
        return self.tokens is None


@dataclass(eq=False)
class Call:
    """One forward of the base module, with everything its hooks hand to each other.

    Attributes:
        owner: the hooks that run.
        outer: the call that was active before, put back at the end.
        placeholders: ``[B, L]`` bool, where this call's image placeholders stand; None for a call without images.
        encoded: Stage I's result; of the images in batch order.
        origin: which encoded image each image of the batch is, where `generate` repeated them; None: one to one.
        rows, plans: the layout, and the plan of each row (None for a row without images).
    """

    owner: object
    outer: Call | None = None
    placeholders: Tensor | None = None
    encoded: EncodedImages | None = None
    origin: list[int] | None = None
    rows: Rows | None = None
    plans: tuple[Plan | None, ...] = ()
    run: Run | None = None


@dataclass(eq=False)
class Run:
    """The language model's part of a call.

    Attributes:
        cache: the cache with `PrunedLayer`s, or None with ``use_cache=False``.
        attention_mask: the caller's ``[B, past + L]`` mask, or None.
        past: columns before this call; length: columns of this call.
        segments: what the layers run on, the current one last; empty while continuing from a pruned cache.
        clusters: the most clusters of any row.
        labels: ``[B, N]`` int64, clusters of the current segment's visual tokens (over the row), or None.
        visual: visual tokens of each row in the current segment; slots: physical tokens of each row.
        cut_layers: the layer that each segment but the first begins at.
        masks: attention mask of each group of layers.
        rotary: cosines and sines of the current segment.
        entry_dropped: visual tokens that each row has lost before the language model, earlier calls included.
        projections: outputs of q_proj and k_proj of the layer before a cut.
    """

    cache: Cache | None
    attention_mask: Tensor | None
    past: int
    entry_dropped: Tensor | int = 0
    length: int = 0
    clusters: int = 0
    segments: list[Segment] = field(default_factory=list)
    labels: Tensor | None = None
    visual: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    cut_layers: list[int] = field(default_factory=list)
    masks: dict[int, Any] = field(default_factory=dict)
    rotary: tuple[Tensor, Tensor] | None = None
    projections: dict[str, Tensor] = field(default_factory=dict)

    @property
    def segment(self) -> Segment:
        """What the layers run on now."""
        return self.segments[-1]

    def release(self) -> None:
        """Lets go of everything that only the forward needed, the cache above all."""
        self.cache = self.attention_mask = self.rotary = None
        self.masks.clear()
        self.projections.clear()


_call: ContextVar[Call | None] = ContextVar("vitcop_call", default=None)
_tower: ContextVar[TowerPass | None] = ContextVar("vitcop_tower", default=None)


def active_call() -> Call | None:
    """The forward pass that hooks are running in, in this thread or task."""
    return _call.get()


def set_call(call: Call | None) -> None:
    """Makes ``call`` the active one."""
    _call.set(call)


def active_tower() -> TowerPass | None:
    """The image encoding that hooks are running in."""
    return _tower.get()


def set_tower(tower: TowerPass | None) -> None:
    """Makes ``tower`` the active one."""
    _tower.set(tower)
