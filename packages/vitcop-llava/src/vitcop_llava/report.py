"""What a prefill kept and saved: numbers from the plan, and on request the patches themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcop_core import LanguageModelShape, Method, Plan, identity_plan
from vitcop_core.cost import layer_kv_bytes, layer_macs
from vitcop_core.diagnostics import CUTOFF_SCALE_RANGE, cutoff_scale
from vitcop_llava.families import Parts
from vitcop_llava.state import Call, EncodedImages


class FeatureScaleWarning(UserWarning):
    """The cutoff distance does not fit the scale of the vision tower's keys."""


@dataclass(frozen=True)
class Stage:
    """One cut of a row: ``layer`` is None before the language model; ``tokens`` is what it left."""

    name: str
    layer: int | None
    tokens: int


@dataclass(frozen=True)
class RowReport:
    """One row of the batch.

    Attributes:
        images: Its images.
        plan: What was done with them; None for a row without images, which runs unpruned.
        text_tokens: Its columns that are not placeholders, padding included.
    """

    images: int
    plan: Plan | None
    text_tokens: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts, in order."""
        if self.plan is None:
            return ()
        found = []
        if self.plan.entry_tokens < self.plan.visual_tokens:
            found.append(Stage("Stage I", None, self.plan.entry_tokens))
        names = {"co_prune": "Stage II", "top_tokens": "Stage III"}
        for order, cut in enumerate(self.plan.decoder):
            name = "Stage II" if order == 0 and len(self.plan.decoder) > 1 else names[cut.stage]
            found.append(Stage(name, cut.layer, cut.keep))
        return tuple(found)


@dataclass(frozen=True)
class Report:
    """The most recent prefill.

    Attributes:
        method: The settings.
        rows: One entry for each row; empty before the first call.
        shape: The language model that costs are computed for.
        bytes_per_element: Of the cache.
        distance_ratio: Median distance between clustered features over the cutoff distance, for the first image; None
            where nothing was clustered.
        note: Why nothing was pruned, where nothing was.
    """

    method: Method
    rows: tuple[RowReport, ...]
    shape: LanguageModelShape
    bytes_per_element: int
    distance_ratio: float | None
    note: str | None

    @classmethod
    def of(cls, call: Call | None, method: Method, parts: Parts) -> Report:
        """The report of a finished call; warns where the cutoff distance does not fit the features."""
        size = next(parts.language_model.parameters()).element_size()
        if call is None:
            return cls(method, (), parts.shape, size, None, "nothing has run yet")
        if call.placeholders is None:
            return cls(method, (), parts.shape, size, None, "a text-only prompt: there is nothing to prune")
        length = call.placeholders.shape[1]
        if call.encoded is None or call.rows is None:
            counts = (call.placeholders.sum(1) // parts.visual_tokens).tolist()
            plans = [identity_plan(parts.shape.num_layers, (parts.visual_tokens,) * n) if n else None for n in counts]
            note: str | None = "the budget keeps every token: the model runs unpruned"
            ratio = None
        else:
            counts, plans, note = list(call.rows.images), list(call.plans), None
            ratio = _distance_ratio(call.encoded, method)
        rows = tuple(
            RowReport(n, plan, length - n * parts.visual_tokens) for n, plan in zip(counts, plans, strict=True)
        )
        return cls(method, rows, parts.shape, size, ratio, note)

    @property
    def pruned(self) -> bool:
        """Whether any row lost a token."""
        return any(row.plan is not None and not row.plan.is_identity for row in self.rows)

    def macs(self) -> tuple[int, int]:
        """Multiply-accumulates of the language model's prefill over all rows: pruned, and unpruned."""
        return self._total(layer_macs)

    def kv_bytes(self) -> tuple[int, int]:
        """Bytes of the cache after the prefill over all rows: pruned, and unpruned."""
        return self._total(lambda shape, length: layer_kv_bytes(shape, length, self.bytes_per_element))

    def _total(self, cost: Callable[[LanguageModelShape, int], int]) -> tuple[int, int]:
        pruned = unpruned = 0
        for row in self.rows:
            length = row.text_tokens + (row.plan.visual_tokens if row.plan else 0)
            unpruned += self.shape.num_layers * cost(self.shape, length)
            visual = row.plan.tokens_per_layer if row.plan else (0,) * self.shape.num_layers
            pruned += sum(cost(self.shape, row.text_tokens + tokens) for tokens in visual)
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
        (macs, full_macs), (kv, full_kv) = self.macs(), self.kv_bytes()
        lines.append(f"prefill: {macs / 1e9:.3g} of {full_macs / 1e9:.3g} GMACs ({macs / full_macs:.1%})")
        lines.append(f"cache: {kv / 2**20:.3g} of {full_kv / 2**20:.3g} MiB ({kv / full_kv:.1%})")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class StageSurvivors:
    """The tokens of one row after one cut.

    Attributes:
        name, layer: Which cut.
        patches: ``[k]`` int64 ascending, over the row's images one after the other.
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


def survivors_of(call: Call | None, row: int) -> Survivors:
    """Reads the survivors of one row back from the device.

    Raises:
        ValueError: The call pruned nothing, or has no such row with an image.
    """
    if call is None or call.encoded is None or call.rows is None or call.run is None or call.placeholders is None:
        raise ValueError("row: no image has been pruned yet, so there are no survivors")
    if not 0 <= row < len(call.rows.images) or call.plans[row] is None:
        raise ValueError(f"row: must be one of the {len(call.rows.images)} rows and hold an image, got {row}")
    plan, encoded, run = call.plans[row], call.encoded, call.run
    assert plan is not None  # checked above
    where = call.placeholders[row].cpu()
    number = where.cumsum(0) - 1  # of the patch at each placeholder
    found = []
    for stage in RowReport(call.rows.images[row], plan, 0).stages:
        segment = run.segments[0 if stage.layer is None else 1 + run.cut_layers.index(stage.layer)]
        columns = segment.columns[row].gather(0, segment.visual[row, : stage.tokens]).cpu()
        merged = torch.zeros(stage.tokens, dtype=torch.bool)
        if segment.is_merged is not None:
            merged = segment.is_merged[row, : stage.tokens].cpu()
        found.append(StageSurvivors(stage.name, stage.layer, number[columns], merged))
    clusters = torch.full((plan.visual_tokens,), -1, dtype=torch.int64)
    if encoded.labels is not None:
        start = sum(call.rows.images[:row])
        for slot in range(call.rows.images[row]):
            image = start + slot if call.origin is None else call.origin[start + slot]
            index = torch.arange(encoded.tokens) if encoded.index is None else encoded.index[image].cpu()
            labels = encoded.labels[image].cpu()
            clusters[index + slot * encoded.tokens] = torch.where(labels >= 0, labels + slot * encoded.clusters, -1)
    return Survivors(plan.visual_tokens, clusters, tuple(found))


def _distance_ratio(encoded: EncodedImages, method: Method) -> float | None:
    cutoff = getattr(method, "cutoff_distance", None)
    clusters_keys = getattr(method, "vic_features", None) in (None, "vit_keys")
    if cutoff is None or not clusters_keys or encoded.keys is None or encoded.keys.shape[0] < 2:
        return None
    ratio = cutoff_scale(encoded.keys[None], cutoff).item()
    low, high = CUTOFF_SCALE_RANGE
    if not low <= ratio <= high:
        warnings.warn(
            f"the median distance between clustered features is {ratio:.2g} times cutoff_distance={cutoff:g}, outside "
            f"{low:g} to {high:g}: densities then say little, and a cutoff_distance near {ratio * cutoff:.3g} is worth "
            "a try",
            FeatureScaleWarning,
            stacklevel=4,
        )
    return ratio
