"""What a variant costs on each question, from the sizes of its images and clips alone: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vitcop_core import Method, Plan, ViTCoP
from vitcop_llava.families import Parts
from vitcop_llava.families.grids import GRIDS
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.report import Report, RowReport
from vitcop_llava.tools.media.video_support import Clip
from vitcop_llava.tools.model.answer import Medium

Sizes = tuple[tuple[int, ...], ...]
"""Of each image of a question its height and width, of each clip its frames, their height and width. Where a processor
rounds sides to whole tokens, they are those that it made."""


def sizes_of(media: Sequence[Medium], inputs: Mapping[str, Any], parts: Parts) -> Sizes:
    """Return the sizes of what a question is about.

    Args:
        media: Its images and clips.
        inputs: What a processor made of it.
        parts: The model.
    """
    if parts.squares is not None:
        vision: Any = parts.vision_tower.config
        grids = inputs[GRIDS["image"]].tolist() if media else []
        return tuple((rows * vision.patch_size, columns * vision.patch_size) for _, rows, columns in grids)
    return tuple(each.frames.shape[:3] if isinstance(each, Clip) else (each.height, each.width) for each in media)


def tilings_of(sizes: Sizes, parts: Parts) -> list[Tiling]:
    """Return what the images and clips of a prompt come to, of these sizes."""
    is_shared = sum(len(size) == 2 for size in sizes) > 1
    return [_tiling_of(size, parts, is_shared=is_shared) for size in sizes]


def _tiling_of(size: tuple[int, ...], parts: Parts, *, is_shared: bool) -> Tiling:
    if parts.squares is not None:
        vision: Any = parts.vision_tower.config
        return parts.squares.image(size[0] // vision.patch_size, size[1] // vision.patch_size)
    if parts.video is not None and len(size) == 3:
        return parts.video.clip(size[0])
    if parts.anyres is None:
        return parts.tiling
    # Some models tile an image that is alone in its prompt, and no other.
    return parts.anyres.untiled if is_shared and parts.anyres.tiles_one else parts.anyres.tile(*size)


@dataclass(frozen=True)
class Cost:
    """Means over questions.

    Attributes:
        tokens: Visual tokens at a layer's input, averaged over the layers too.
        macs: Multiply-accumulates of the language model's prefill.
        kv_bytes: Of the cache after it.
        tokens_per_layer: Visual tokens at each layer's input; None where questions differ.
    """

    tokens: float
    macs: float
    kv_bytes: float
    tokens_per_layer: tuple[int, ...] | None


class CostCounter:
    """Counts for one variant.

    Args:
        method: None for the unpruned model.
        parts: The model.
        bytes_per_element: Of the cache.
    """

    def __init__(self, method: Method | None, parts: Parts, bytes_per_element: int) -> None:
        self._method = ViTCoP(retention_ratio=1) if method is None else method
        self._parts, self._bytes = parts, bytes_per_element
        self._planner = Planner(self._method, parts.shape.num_layers, keep_newlines=False)
        self._plans: dict[Sizes, RowReport] = {}

    def row(self, sizes: Sizes) -> RowReport:
        """Return the plan of a question with images and clips of these sizes, and their newline tokens.

        Raises:
            ValueError: The budget cannot be met for them.
        """
        if sizes not in self._plans:
            tilings = tilings_of(sizes, self._parts)
            images = self._planner.images(tilings, [(size[-2], size[-1]) for size in sizes])
            newlines = sum(image.tiling.newlines for image in images)
            kept = sum(image.newlines for image in images)
            self._plans[sizes] = RowReport(len(images), self._planner.row(images), 0, newlines, kept)
        return self._plans[sizes]

    def mean(self, questions: Sequence[tuple[Sizes, int]]) -> Cost:
        """Return the mean cost of questions: the sizes of what they are about, and their tokens of text.

        Raises:
            ValueError: The budget cannot be met for one.
        """
        macs = kv_bytes = 0
        tokens, plans = Fraction(0), dict[Plan, None]()
        # Questions that are alike cost the same, and there are few kinds.
        kinds: dict[tuple[Sizes, int], int] = {}
        for question in questions:
            kinds[question] = kinds.get(question, 0) + 1
        for (sizes, text), many in kinds.items():
            row = self.row(sizes)
            assert row.plan is not None  # every question has an image
            full = RowReport(row.images, row.plan, text, row.newlines, row.newlines_kept)
            report = Report(self._method, (full,), self._parts.shape, self._bytes, None, None)
            macs, kv_bytes = macs + many * report.macs()[0], kv_bytes + many * report.kv_bytes()[0]
            tokens += many * row.plan.average_tokens
            plans[row.plan] = None
        each = {plan.tokens_per_layer for plan in plans}
        count = len(questions)
        return Cost(float(tokens / count), macs / count, kv_bytes / count, each.pop() if len(each) == 1 else None)
