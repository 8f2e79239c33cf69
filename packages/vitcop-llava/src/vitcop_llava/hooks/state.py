"""What one forward pass knows. Held per call: threads and nested models never share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from vitcop_core import Plan
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.kept import Kept, PlannedImage
from vitcop_llava.hooks.reading import HostPrompt
from vitcop_llava.hooks.runs import Prefill, Run, Trace


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
        cutoff: The cutoff distance that tokens were clustered by, or ``[groups]`` float32 that were found; None where
            nothing was clustered by one.
        kind: ``"image"``, or ``"video"`` for clips.
        unreplayed: Why the tower's layers were run as they are, where they were to be replayed.
        units: ``[m]`` int64 by unit, as ``codes``: what became of its tokens, until all units are decided.
    """

    owner: int
    kind: str = "image"
    images: tuple[PlannedImage, ...] = ()
    kept: Kept | None = None
    coded: Tensor | None = None
    labels: tuple[int, ...] = ()
    keys: Tensor | None = None
    cutoff: float | Tensor | None = None
    unreplayed: str | None = None
    units: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tilings(self) -> list[Tiling]:
        """How each of the images lies."""
        return [image.tiling for image in self.images]

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
        normed: ``[C, 1 + M, d_v]``, what the scored layer's attention was called with; None before it was. ``[S, d_v]``
            where the tower sees the patches of all units in one row.
        made: The module that made queries, keys and values of it in one, and these: ``[S, 3 H e]``. None elsewhere.
        rotary: Cosines and sines that attention was called with; None where there are none.
        feature: ``[C, 1 + M, d_v]``, that layer's output.
        places: ``[N]`` int64, the kept patches, numbered over all units; None where all are.
        patches: Units, and patches of each; the tokens of all units where the tower sees them in one row.
        held: The calls of `Parts.deepstack_projectors`, until they are made.
        is_decided: Whether it is known which patches are kept.
    """

    encoded: EncodedImages
    normed: Tensor | None = None
    made: tuple[nn.Module, Tensor] | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    feature: Tensor | None = None
    places: Tensor | None = None
    patches: tuple[int, ...] = (0, 0)
    held: list[Held] = field(default_factory=list)
    is_decided: bool = False


@dataclass(eq=False)
class Held:
    """A call of a part of the tower, which is made once it is known what goes through that part.

    Attributes:
        module: That part.
        given: ``[S, d_v]``, what it was called with.
        is_made: Whether the call was made at once, with all of that, because others have hooks on the part.
        made: What takes the place of its output, once that is known; None where that stays.
    """

    module: nn.Module
    given: Tensor
    is_made: bool
    made: Tensor | None = None


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
        counts: How many of them each row holds, in the order of the batch, once that is counted.
    """

    where: Tensor
    encoded: EncodedImages | None = None
    origin: list[int] | None = None
    repeats: int = 1
    counts: tuple[int, ...] = ()

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
        """Return the codes of each image of the batch, clusters counted over the batch where anything was clustered."""
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
    """What each row holds, on the host.

    Attributes:
        members: Images and clips of each row, images first, whatever their order in the prompt.
        tokens: Attended tokens of each row, visual and text; None where rows are alike and nothing needs to be known.
        span: The columns of the images, where they are one run that is the same in all rows, which are alike.
        first: The position id that all rows count from, by one at every token; None where they do not, or there are
            none.
    """

    members: tuple[tuple[PlannedImage, ...], ...]
    tokens: tuple[int, ...] | None = None
    span: range | None = None
    first: int | None = None


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
        run: The language model's part, while it lasts.
        outcome: What is left of that when it was a prefill, and is over.
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
    outcome: Trace | None = None

    def take(self, encoded: EncodedImages) -> None:
        """Note what was encoded on the way to the language model."""
        if encoded.kind in self.sources:
            self.sources[encoded.kind].encoded = encoded

    def close(self) -> None:
        """Let go of everything that only the forward needed, the cache above all."""
        self.outer = self.seen = None
        run, self.run = self.run, None
        if run is not None:
            run.close()
        if isinstance(run, Prefill):
            unreplayed = None if run.replay is None else run.replay.obstacle
            held = tuple(layer.physical_length for layer in run.layers) if run.past else ()
            self.outcome = Trace(run.cut_layers, run.segments, unreplayed, held)
