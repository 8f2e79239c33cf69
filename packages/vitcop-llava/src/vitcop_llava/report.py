"""What a prefill kept and saved: numbers from the plan, and on request the patches themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vitcop_core import LanguageModelShape, Method, Plan, identity_plan
from vitcop_core.checks import check_int, check_tuple, plain
from vitcop_core.cost import layer_kv_bytes, layer_macs
from vitcop_core.shown import shown
from vitcop_llava.families import Parts
from vitcop_llava.hooks.counting import by_row, count_images
from vitcop_llava.hooks.kept import PlannedImage
from vitcop_llava.hooks.state import Call, EncodedImages
from vitcop_llava.report_rows import RowReport, Stage, titles_of

__all__ = ["FeatureScaleWarning", "Report", "RowReport", "Stage", "StageSurvivors", "Survivors", "survivors_of"]


class FeatureScaleWarning(UserWarning):
    """The method's settings do not fit the scale of the vision tower's keys."""


@dataclass(frozen=True)
class Report:
    """The most recent prefill.

    Attributes:
        method: The settings.
        rows: One entry for each row; empty before the first call.
        shape: The language model that costs are computed for.
        bytes_per_element: Of the cache.
        distance_ratio: What the method diagnosed of the first image, :attr:`Diagnosis.ratio`: for ViTCoP the median
            distance between clustered features over the cutoff distance. None where nothing was clustered.
        note: Why nothing was pruned; None if something was.
        cutoff_distance: What the tokens of the first image were clustered by; None where nothing was clustered.
        lengths: Tokens that each layer ran on in every row, padding included; empty where each row counts by itself.
        past: Tokens that each layer's cache held before, in every row; empty for none.
        past_unpruned: Tokens that it would hold without pruning.

    Raises:
        TypeError: ``bytes_per_element`` is not an integer, or ``rows`` no tuple.
        ValueError: ``bytes_per_element`` is out of range.
    """

    method: Method
    rows: tuple[RowReport, ...]
    shape: LanguageModelShape
    bytes_per_element: int
    distance_ratio: float | None
    note: str | None
    cutoff_distance: float | None = None
    # The same follows from the rows where a report is read from a file: it has one row, and nothing before it.
    lengths: tuple[int, ...] = field(default=(), compare=False)
    past: tuple[int, ...] = field(default=(), compare=False)
    past_unpruned: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_int("bytes_per_element", self.bytes_per_element, 1)
        check_tuple("rows", self.rows, "RowReport")

    @classmethod
    def of(cls, call: Call | None, method: Method, parts: Parts) -> Report:
        """Return the report of a finished call, and warn of what the method diagnoses."""
        size = next(parts.language_model.parameters()).element_size()
        if call is None:
            return cls(method, (), parts.shape, size, None, "nothing has run yet")
        if call.placeholders is None:
            return cls(method, (), parts.shape, size, None, "a text-only prompt: there is nothing to prune")
        if call.rows is None:
            members = _unpruned_rows(call, parts)
            plans = [identity_plan(parts.shape.num_layers, _units(row)) if row else None for row in members]
            note: str | None = "the budget keeps every token: the model runs unpruned"
            ratio = cutoff = None
        else:
            members, plans, note = [*call.rows.members], list(call.plans), None
            encoded = [source.results for source in call.sources.values()]
            own = method.for_tower(has_cls=parts.scored is None or parts.scored.has_cls)
            ratio = _first(_distance_ratio(each, own) for each in encoded)
            cutoff = _first(_cutoff_distance(each) for each in encoded)
        length = call.placeholders.shape[1]
        rows = tuple(_row_report(method, length, *row) for row in zip(members, plans, strict=True))
        layers = parts.shape.num_layers
        lengths = () if call.outcome is None else call.outcome.lengths(layers)
        past = (call.past,) * layers if call.past else ()
        if call.outcome is not None and call.outcome.held and lengths:
            past = tuple(held - own for held, own in zip(call.outcome.held, lengths, strict=True))
        return cls(method, rows, parts.shape, size, ratio, note, cutoff, lengths, past, call.past)

    @property
    def pruned(self) -> bool:
        """Whether any row lost a token."""
        return any(row.plan is not None and not row.plan.is_identity for row in self.rows)

    def macs(self) -> tuple[int, int]:
        """Return the multiply-accumulates of the language model's prefill over all rows: pruned, and unpruned.

        Padding counts, as it is computed with: in either, every row is as long as the longest. What the method computes
        to choose tokens does not.
        """
        return self._total(lambda tokens, past: layer_macs(self.shape, tokens, past))

    def kv_bytes(self) -> tuple[int, int]:
        """Return the bytes of the cache after the prefill over all rows: pruned, and unpruned.

        Padding and earlier turns count, as they are held.
        """
        size = self.bytes_per_element
        return self._total(lambda tokens, past: layer_kv_bytes(self.shape, tokens + past, size))

    def _total(self, cost: Callable[[int, int], int]) -> tuple[int, int]:
        layers, pruned, unpruned = self.shape.num_layers, 0, 0
        for row in self.rows:
            length = row.text_tokens + row.newlines + (row.plan.visual_tokens if row.plan else 0)
            unpruned += layers * cost(length, self.past_unpruned)
            visual = row.plan.tokens_per_layer if row.plan else (0,) * layers
            lengths = self.lengths or tuple(row.text_tokens + row.newlines_kept + tokens for tokens in visual)
            pruned += sum(map(cost, lengths, self.past or (0,) * layers))
        return pruned, unpruned

    def __str__(self) -> str:
        if self.note is not None:
            return f"not pruned: {self.note}"
        lines = []
        for index, row in enumerate(self.rows):
            if row.plan is None:
                lines.append(f"row {index}: no image, runs unpruned")
                continue
            stages = ", ".join(
                f"{stage.name} -> {stage.tokens}" + ("" if stage.layer is None else f" (before layer {stage.layer})")
                for stage in row.stages
            )
            average = float(row.plan.average_tokens)
            lines.append(f"row {index}: {row.plan.visual_tokens} visual tokens, {stages}; {average:.2f} on average")
        if self.cutoff_distance is not None:
            lines.append(f"clustered by a cutoff distance of {self.cutoff_distance:.4g}")
        (macs, full_macs), (kv, full_kv) = self.macs(), self.kv_bytes()
        lines.append(f"prefill: {macs / 1e9:.3g} of {full_macs / 1e9:.3g} GMACs ({_share(macs, full_macs)})")
        lines.append(f"cache: {kv / 2**20:.3g} of {full_kv / 2**20:.3g} MiB ({_share(kv, full_kv)})")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class StageSurvivors:
    """The tokens of one row after one cut.

    Attributes:
        name, layer: Which cut.
        patches: ``[k]`` int64 ascending, over the row's images one after the other, each in the order of its
            placeholders (of tiles: the base, then their merged grid without padding), newlines not counted.
        merged: ``[k]`` bool, which of them stand for the rest of a cluster.
    """

    name: str
    layer: int | None
    patches: Tensor
    merged: Tensor


@dataclass(frozen=True, eq=False)
class Survivors:
    """Which patches of a row survived each cut.

    Attributes:
        patches: The row's patches before any cut.
        clusters: ``[patches]`` int64, cluster of each patch that Stage I kept (images apart); -1 for the others.
        stages: One entry a cut, in order.
    """

    patches: int
    clusters: Tensor
    stages: tuple[StageSurvivors, ...]

    def part(self, start: int, stop: int) -> Survivors:
        """Return the survivors among the patches ``start`` to ``stop``, counted from ``start``."""
        stages = []
        for stage in self.stages:
            inside = (stage.patches >= start) & (stage.patches < stop)
            stages.append(replace(stage, patches=stage.patches[inside] - start, merged=stage.merged[inside]))
        return Survivors(stop - start, self.clusters[start:stop], tuple(stages))


def survivors_of(call: Call | None, row: int, method: Method) -> Survivors:
    """Read the survivors of one row back from the device.

    Args:
        call: A finished one.
        row: Which.
        method: What the call was pruned with: it names its cuts.

    Raises:
        TypeError: ``row`` is not an integer.
        ValueError: The call pruned nothing, or has no such row with an image.
    """
    if call is None or call.rows is None or call.outcome is None:
        raise ValueError("row must be of a call that pruned an image, got none: there are no survivors yet")
    row = plain(row)
    if isinstance(row, bool) or not isinstance(row, int):
        raise TypeError(f"row must be an integer, got {shown(row)}")
    if not 0 <= row < len(call.plans) or call.plans[row] is None:
        raise ValueError(f"row must be one of the {len(call.plans)} rows and hold an image, got {shown(row)}")
    plan, outcome = call.plans[row], call.outcome
    assert plan is not None  # checked above
    number = _patch_numbers(call, row)
    found = []
    for stage in RowReport(len(call.rows.members[row]), plan, 0, titles=titles_of(method, plan)).stages:
        segment = outcome.segments[0 if stage.layer is None else 1 + outcome.cut_layers.index(stage.layer)]
        columns = segment.columns[row].gather(0, segment.visual[row, : stage.tokens]).cpu()
        merged = torch.zeros_like(columns, dtype=torch.bool)
        if segment.is_merged is not None:
            merged = segment.is_merged[row, : stage.tokens].cpu()
        columns, order = columns.sort()  # appended tokens come last in the sequence
        found.append(StageSurvivors(stage.name, stage.layer, number[columns], merged[order]))
    return Survivors(plan.visual_tokens, _clusters_of(call, row), tuple(found))


def _patch_numbers(call: Call, row: int) -> Tensor:
    """Return ``[L]`` int64: the number of the patch at each placeholder of a row, whatever elsewhere."""
    numbers, before = torch.zeros(next(iter(call.sources.values())).where.shape[1], dtype=torch.int64, device="cpu"), 0
    for source in call.sources.values():
        own = by_row(source.images, source.counts)[row]
        if own:
            where, places = source.where[row].cpu(), _is_patch(own)
            numbers[where] = before + (places.cumsum(0) - 1)[: int(where.sum())]
            before += int(places.sum())
    return numbers


def _clusters_of(call: Call, row: int) -> Tensor:
    """Return ``[patches]`` int64: the cluster of each patch of a row, counted from 0 in the row; -1 for the dropped."""
    found, before = [], 0
    for source in call.sources.values():
        count = source.counts
        own, encoded = by_row(source.images, count)[row], source.results
        codes = encoded.codes if own and encoded.labels else None
        if codes is None:
            found.append(torch.full((sum(image.tiling.tokens for image in own),), -1, device="cpu"))
            continue
        first, last, numbers = sum(count[:row]), sum(count[: row + 1]), source.numbers
        codes = torch.cat(source.batch_codes(codes.cpu())[first:last])[_is_patch(own)]
        start = sum(encoded.labels[image] for image in numbers[:first])
        found.append(torch.where(codes >= 0, codes - start + before, -1))
        before += sum(encoded.labels[image] for image in numbers[first:last])
    return torch.cat(found)


def _is_patch(images: Sequence[PlannedImage]) -> Tensor:
    """Return ``[placeholders]`` bool: which of the images' placeholders stand for patches, and not for newlines."""
    found = []
    for image in images:
        places = torch.ones(image.tiling.placeholders, dtype=torch.bool, device="cpu")
        places[list(image.tiling.newline_places)] = False
        found.append(places)
    return torch.cat(found)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "nothing to run"


def _row_report(method: Method, length: int, images: Sequence[PlannedImage], plan: Plan | None) -> RowReport:
    newlines = sum(image.tiling.newlines for image in images)
    text = length - sum(image.tiling.placeholders for image in images)
    kept = sum(image.newlines for image in images)
    return RowReport(len(images), plan, text, newlines, kept, titles_of(method, plan))


def _units(images: Sequence[PlannedImage]) -> tuple[int, ...]:
    return tuple(unit for image in images for unit in image.tiling.units)


def _unpruned_rows(call: Call, parts: Parts) -> list[tuple[PlannedImage, ...]]:
    """Return the images and clips of each row of a call that kept everything, read from its placeholders."""
    each = []
    for source in call.sources.values():
        counts = source.where.sum(1).tolist()
        if source.encoded is not None and source.encoded.images:
            images = source.images
        else:
            whole = PlannedImage(parts.tiling, identity_plan(parts.shape.num_layers, parts.tiling.units))
            images = [whole] * (sum(counts) // parts.visual_tokens)
        sizes = [image.tiling.placeholders for image in images]
        repeats = sum(counts) // sum(sizes) if sizes else 1  # of each row, by `generate` for beams
        rows = by_row(images, count_images(counts[::repeats], sizes))
        each.append([row for row in rows for _ in range(repeats)])
    return [tuple(image for part in row for image in part) for row in zip(*each, strict=True)]


def _first(found: Iterable[float | None]) -> float | None:
    return next((each for each in found if each is not None), None)


def _cutoff_distance(encoded: EncodedImages) -> float | None:
    cutoff = encoded.cutoff
    return float(cutoff[0]) if isinstance(cutoff, Tensor) else cutoff


def _distance_ratio(encoded: EncodedImages, method: Method) -> float | None:
    if encoded.keys is None or encoded.keys.shape[0] < 2:
        return None
    found = method.diagnose(encoded.keys)
    if found is not None and found.warning is not None:
        warnings.warn(found.warning, FeatureScaleWarning, stacklevel=4)
    return None if found is None else found.ratio
