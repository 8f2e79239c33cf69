"""Stage I over the units of a call: which patches go through the projector, and what becomes of every placeholder.

Counts come from the plans, on the host; indices stay on the device. Units that use different parts of their grid, or
keep different numbers, are one ragged batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from vitcop_core import Method, VisionSelection, VisionView
from vitcop_core.tokens import places_of
from vitcop_llava.families.tiling import Box, Tiling
from vitcop_llava.hooks.kept import DROPPED, NEWLINE, Kept, PlannedImage
from vitcop_llava.hooks.lines import of_lines, tile_index
from vitcop_llava.hooks.state import EncodedImages
from vitcop_llava.sequence.segment import copied, on_device, take

Item = TypeVar("Item")


@dataclass(frozen=True)
class UnitCut:
    """What one unit offers, keeps, and how many labels its tokens have; all 0 for a tile that is padding alone.

    ``columns`` are those of its grid, of which ``box`` is the part that the model uses.
    """

    box: Box
    columns: int
    eligible: int
    keep: int
    clusters: int
    is_cut: bool = True

    @property
    def labels(self) -> int:
        """Labels of its tokens. Beside units that are clustered, each token of one that is not stands for itself."""
        return self.clusters or self.keep


class _Ragged(NamedTuple):
    """Units that differ, on the device: ``[C, n]`` eligible patches, and ``[C]`` numbers; all int64."""

    eligible: Tensor
    lengths: Tensor
    keeps: Tensor
    clusters: Tensor


def run_stage_one(
    method: Method,
    seen: VisionView,
    encoded: EncodedImages,
    numbers: Sequence[int] | None = None,
    beside: Sequence[Tensor] = (),
) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
    """Choose patches, and write into ``encoded`` what became of the placeholders.

    Args:
        method: Decides.
        seen: The tower's units, without what is eligible.
        encoded: With its images planned; gets ``labels``, ``keys`` and ``cutoff``, and ``codes`` once all units are
            decided.
        numbers: Which of the call's units they are, where the others are decided by themselves; None for all.
        beside: ``[C, m, d]`` each, what else there is of the same patches, to be reduced as the features are.

    Returns:
        ``[N]`` int64, the kept patches of all units one after the other, numbered over the patches of all units, None
        where they are all kept as they are; and ``[N, d_v]`` what goes through the projector for them, followed by what
        is left of each of ``beside``, None where it is the patches themselves.
    """
    every = _unit_cuts(encoded.images)
    cuts = _of(every, numbers)
    units, patches = seen.hidden.shape[:2]
    total = sum(cut.keep for cut in cuts)
    is_cut = any(image.plan.vision is not None for image in encoded.images)
    if not is_cut and not any(image.lost for image in encoded.images):
        encoded.coded = whole_codes(encoded.images, seen.hidden.device)  # newlines that stay are no visual tokens
        return None, None
    ragged = None
    if cuts[0].eligible != patches or any(cut != cuts[0] for cut in cuts):
        ragged = _ragged(cuts, patches, seen.hidden.device)
        seen = replace(seen, eligible=ragged.eligible, lengths=ragged.lengths)
    made, keeps = None, None if ragged is None else ragged.keeps
    if is_cut:
        index, labels, made, keeps = _chosen(method, seen, every, ragged, encoded, numbers, beside)
    else:  # newlines and padding alone are left out
        index, labels = torch.arange(patches, device=seen.hidden.device).expand(units, -1), None
        index = index if ragged is None else ragged.eligible
    places = index.flatten()
    if units > 1:
        places = (index + torch.arange(0, units * patches, patches, device=index.device)[:, None]).flatten()
    if numbers is None and ragged is None and keeps is None and _are_units(encoded.images):
        encoded.kept = Kept(index, labels, cuts[0].clusters, patches)
        return (None if total == units * patches and made is None else places), made
    values = torch.zeros_like(places) if labels is None else labels.flatten()
    if keeps is not None:
        used = torch.arange(index.shape[1], device=index.device) < keeps[:, None]
        own = places_of(used.flatten()[None], total)[0]
        places, values = places[own], values[own]
        made = None if made is None else tuple(each[own] for each in made)
    codes = torch.full((units * patches,), DROPPED, dtype=torch.int64, device=places.device).scatter(0, places, values)
    codes = codes.view(units, patches)
    if numbers is None:
        encoded.coded = packed(codes, encoded.images)
    else:
        encoded.units |= zip(numbers, codes, strict=True)
    if len(encoded.units) == len(every):
        encoded.coded = packed([encoded.units.pop(unit) for unit in range(len(every))], encoded.images)
    return (None if total == units * patches and made is None else places), made


def _are_units(images: Sequence[PlannedImage]) -> bool:
    """Return whether images are one unit each, and nothing but its tokens."""
    return all(len(image.tiling.boxes) == 1 and not image.tiling.newlines for image in images)


def whole_codes(images: Sequence[PlannedImage], device: torch.device) -> Tensor | None:
    """Return what becomes of the placeholders of images that Stage I leaves whole: ``[placeholders]`` int64, as in
    `EncodedImages`; None where all are visual tokens, and stay.
    """
    if not any(image.tiling.newlines for image in images):
        return None
    codes = torch.zeros(sum(image.tiling.placeholders for image in images), dtype=torch.int64)
    start = 0
    for image in images:
        places = [start + place for place in image.tiling.newline_places]
        codes[places] = NEWLINE if image.newlines else DROPPED
        start += image.tiling.placeholders
    return copied(codes, device)


def _unit_cuts(images: Sequence[PlannedImage]) -> list[UnitCut]:
    """Return the units of all images, in the order in which the tower sees them."""
    found = []
    for image in images:
        cut, tiling = image.plan.vision, image.tiling
        keeps, clusters = (tiling.units, (0,) * len(tiling.units)) if cut is None else (cut.keep, cut.clusters)
        planned = iter(zip(keeps, clusters, strict=True))
        for box, columns, eligible in zip(*_boxes(tiling), tiling.counts, strict=True):
            keep, labels = next(planned) if eligible else (0, 0)
            found.append(UnitCut(box, columns, eligible, keep, labels, cut is not None))
    return found


def _boxes(tiling: Tiling) -> tuple[Sequence[Box], Sequence[int]]:
    """Return the part of each unit's grid that the model uses, and the columns of that grid."""
    if not tiling.is_interpolated:
        return tiling.boxes, (tiling.grid[1],) * len(tiling.boxes)
    own = [(0, bottom - top, 0, right - left) for top, bottom, left, right in tiling.cells]
    return (tiling.boxes[0], *own), (tiling.grid[1], *(max(box[3], 1) for box in own))


def _ragged(cuts: list[UnitCut], patches: int, device: torch.device) -> _Ragged:
    table = []
    for cut in cuts:
        top, _, left, right = cut.box
        width = max(right - left, 1)
        table.append((top * cut.columns + left, cut.columns - width, width, cut.eligible, cut.keep, cut.clusters))
    corners, beside, widths, lengths, keeps, clusters = on_device(table, device).unbind(1)
    number = torch.arange(max(cut.eligible for cut in cuts), device=device)
    down = torch.div(number, widths[:, None], rounding_mode="floor")
    eligible = corners[:, None] + down * beside[:, None] + number
    return _Ragged(eligible.clamp(max=patches - 1), lengths, keeps, clusters)


def _chosen(
    method: Method,
    seen: VisionView,
    every: list[UnitCut],
    ragged: _Ragged | None,
    encoded: EncodedImages,
    numbers: Sequence[int] | None,
    beside: Sequence[Tensor],
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None, Tensor | None]:
    """Return what Stage I chose in each of the units, which are some of the call's or all; see `run_stage_one`.

    Returns:
        ``[C, k]`` the patches kept; ``[C, k]`` their labels, counted over the call; ``[C k, d_v]`` features that are to
        be projected instead of those of patches, followed by what ``beside`` becomes; ``[C]`` how many are a unit's
        own, where less than k. The first three are arbitrary past a unit's own number.
    """
    cuts = _of(every, numbers)
    keep, clusters = max(cut.keep for cut in cuts), max(cut.clusters for cut in cuts)
    given = (None, None) if ragged is None else (ragged.keeps, ragged.clusters)
    selection = method.cut_vision(seen, keep, clusters, *given)
    keeps = given[0] if selection.counts is None else selection.counts
    if selection.clusters is None:
        labels = None
        if any(cut.clusters for cut in every) and not any(cut.clusters for cut in cuts):
            # Units that are clustered are decided by themselves; each token of these stands for itself.
            firsts = _first_labels(every, None, selection.index.device, numbers)
            labels = firsts[:, None] + torch.arange(selection.index.shape[1], device=firsts.device)
        return selection.index, labels, _made(selection, (seen.hidden, *beside), cuts), keeps
    index, labels = selection.index, selection.clusters.labels
    if encoded.keys is None:
        encoded.cutoff, encoded.keys = selection.cutoff, _first_keys(seen)
        if selection.counts is None:  # otherwise all of the first unit's tokens tell the scale as well
            encoded.keys = encoded.keys[index[0, : cuts[0].keep]]
    encoded.labels = tuple(sum(cut.labels for cut in _unit_cuts([image])) for image in encoded.images)
    if numbers is None and ragged is None and selection.spans is None:
        if not _are_units(encoded.images):  # otherwise they are counted image by image
            labels = labels + clusters * torch.arange(len(cuts), device=labels.device)[:, None]
        return index, labels, None, keeps
    firsts = _first_labels(every, selection.spans, labels.device, numbers)
    if ragged is not None and keeps is not None:
        # Where a clip's tokens are shared out anew, those of a frame begin where the frames before it end now.
        drift = (keeps - ragged.keeps).cumsum(0) - (keeps - ragged.keeps)
        itself = torch.arange(labels.shape[1], device=labels.device) + drift[:, None]
        labels = torch.where(ragged.clusters[:, None] > 0, labels, itself)
    return index, labels + firsts[:, None], None, keeps


def _made(selection: VisionSelection, values: tuple[Tensor, ...], cuts: list[UnitCut]) -> tuple[Tensor, ...] | None:
    """Return what a selection makes of the patches' features and of what stands beside them.

    Args:
        selection: What was chosen.
        values: The features, and then the others, ``[C, m, d]`` each.
        cuts: The units.

    Returns:
        ``[C k, d]`` of each, those of the patches for units that are not cut; None if the selection makes nothing.
    """
    if selection.hidden is None:
        return None
    made, merge = [selection.hidden], selection.merge
    index = selection.index.clamp(max=values[0].shape[1] - 1)
    made += [take(each, index) if merge is None else merge(each) for each in values[1:]]
    if not all(cut.is_cut for cut in cuts):
        is_cut = (on_device([int(cut.is_cut) for cut in cuts], index.device) > 0)[:, None, None]
        made = [torch.where(is_cut, mine, take(own, index)) for mine, own in zip(made, values, strict=True)]
    return tuple(each.flatten(0, 1) for each in made)


def _first_keys(seen: VisionView) -> Tensor:
    """Return ``[m, H e]``: the keys of the first unit's tokens."""
    if seen.mix is not None:  # which takes all units together
        return seen.key_features().detach()[0]
    return seen.pooled(seen.patch_keys[:1].transpose(1, 2).flatten(2).detach())[0]


def _first_labels(
    cuts: list[UnitCut], spans: Sequence[int] | None, device: torch.device, numbers: Sequence[int] | None
) -> Tensor:
    """Return ``[C]`` int64: what each unit's labels begin with; the clustered units of a span begin together.

    Args:
        cuts: All units of the call.
        spans: How many units are clustered together, where some are.
        device: Where to put them.
        numbers: The units that are asked for; None for all.
    """
    starts = list(accumulate((cut.labels for cut in cuts), initial=0))
    firsts = accumulate(spans or (1,) * len(cuts), initial=0)
    leaders = [first for first, span in zip(firsts, spans or (1,) * len(cuts), strict=False) for _ in range(span)]
    own = [starts[first if cut.clusters else unit] for unit, (cut, first) in enumerate(zip(cuts, leaders, strict=True))]
    return on_device(_of(own, numbers), device)


def _of(each: list[Item], numbers: Sequence[int] | None) -> list[Item]:
    """Return what is there of some units, from what is there of all; None for all."""
    return each if numbers is None else [each[number] for number in numbers]


def packed(codes: Tensor | list[Tensor], images: Sequence[PlannedImage]) -> Tensor:
    """Return the codes of the tokens of each unit, ``[C, m]`` or as many ``[m]``, in the order of the placeholders of
    all images.
    """
    if not any(image.tiling.tiles[0] or image.tiling.ending for image in images):
        counts = [count for image in images for count in image.tiling.counts]
        if isinstance(codes, Tensor) and min(counts) == codes.shape[1]:
            return codes.flatten()
        return torch.cat([row[:count] for row, count in zip(codes, counts, strict=True)])
    found, start = [], 0
    for image in images:
        stop = start + len(image.tiling.boxes)
        found.append(_pack(codes[start:stop], image.tiling, NEWLINE if image.newlines else DROPPED))
        start = stop
    return torch.cat(found)


def _pack(codes: Tensor | list[Tensor], tiling: Tiling, newline: int) -> Tensor:
    """Pack the codes of an image's units, ``[m]`` each, as transformers does: units in their order, or the base and the
    merged grid of the tiles, without padding or interpolated.
    """
    if not tiling.tiles[0]:
        packed = codes.flatten() if isinstance(codes, Tensor) else torch.cat(codes)
        return functional.pad(packed, (0, 1), value=newline) if tiling.ending else packed
    (rows, columns), (down, across), (top, bottom, left, right) = tiling.grid, tiling.tiles, tiling.window
    tiles = codes[1:] if isinstance(codes, Tensor) else torch.stack(codes[1:])
    if tiling.is_interpolated:
        index = tile_index(tiling, tiles.device)
        merged = of_lines(tiles[:, : index.shape[1]], index, tiling).view(tiling.lines)
    else:
        merged = tiles.view(down, across, rows, columns).transpose(1, 2).reshape(down * rows, across * columns)
        merged = merged[top:bottom, left:right]
    return torch.cat([codes[0], functional.pad(merged, (0, 1), value=newline).flatten()])
