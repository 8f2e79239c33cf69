"""Stage I where the model makes tokens of several patches behind the projector: interpolated tiles, frames of clips.

Such a token is there only when the model has packed its features, and so everything is decided then, on the tokens as
they would enter the language model. What ranks them and what they are clustered by is averaged over their patches by
the weights with which the model interpolates. All patches of these units go through the projector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vitcop_core import Method, VisionView
from vitcop_llava.families import Parts
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.entering import keys_of_first_layer
from vitcop_llava.hooks.lines import mixed_units, of_lines, of_tiles, tile_index
from vitcop_llava.hooks.stage_one import run_stage_one
from vitcop_llava.hooks.state import EncodedImages, TowerPass
from vitcop_llava.hooks.vision import projected
from vitcop_llava.sequence.segment import grid_positions, on_device


class MixedStage:
    """Decides for units whose tokens are mixed behind the projector. Holds no state of any call."""

    def __init__(self, parts: Parts, method: Method) -> None:
        self._parts, self._method = parts, method

    def decide(self, tower: TowerPass, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run Stage I over these units, if there are any.

        Args:
            tower: What the tower has shown.
            features: ``[placeholders, d]`` of each image or clip, as the model has packed them.

        Returns:
            The features, those that the method made in their places.
        """
        units = mixed_units(tower.encoded.tilings, self._parts)
        if not units:
            return features
        return decide_mixed(self._method, self._view(tower, units), tower.encoded, units, features, self._parts.grid)

    def _view(self, tower: TowerPass, units: Sequence[int]) -> VisionView:
        """Return what the tower has shown of the patches of these units."""
        scored, normed, feature = self._parts.scored, tower.normed, tower.feature
        assert scored is not None  # a method that cuts here is refused without
        assert normed is not None  # checked before the projector ran
        assert feature is not None  # likewise
        if len(units) < normed.shape[0]:
            chosen = on_device(units, normed.device)
            normed, feature = normed.index_select(0, chosen), feature.index_select(0, chosen)
        cls: Any = self._parts.projector(feature[:, :1])[:, 0] if scored.has_cls else None
        return VisionView(
            query_cls=projected(scored, "q", normed[:, :1])[:, :, 0] if scored.has_cls else None,
            keys=projected(scored, "k", normed),
            entry_keys=partial(keys_of_first_layer, self._parts),
            scale=scored.scale,
            positions=normed.new_zeros((len(units), 0, 2)),
            hidden=feature,
            hidden_cls=cls,
            queries=partial(projected, scored, "q", normed),
        )


def decide_mixed(
    method: Method,
    seen: VisionView,
    encoded: EncodedImages,
    units: Sequence[int],
    features: Sequence[Tensor],
    grid: tuple[int, int],
) -> Sequence[Tensor]:
    """Run Stage I over units whose tokens are mixed of several patches.

    Args:
        method: Decides.
        seen: The patches of these units; ``hidden`` and ``positions``, which are those of tokens, are not read.
        encoded: As `run_stage_one` takes it.
        units: Which of the call's units they are.
        features: ``[placeholders, d]`` of each image or clip, projected and packed.
        grid: Rows and columns of patches of a unit.

    Returns:
        The features, those that the method made in their places.
    """
    layouts = mixed_layouts(encoded.tilings, seen.keys.device)
    most = max(layout.width for layout in layouts)
    frames = tuple(layout.tiling.frames for layout in layouts)
    seen = replace(
        seen,
        positions=_joined([layout.positions(seen.keys.device) for layout in layouts], most),
        hidden=_joined([layout.take(features[layout.number]) for layout in layouts], most),
        frames=frames if all(frames) else None,
        mix=mixing(layouts, grid),
    )
    kept, made = run_stage_one(method, seen, encoded, units)
    if made is None or kept is None:
        return features
    whole = seen.hidden.flatten(0, 1).index_copy(0, kept, made[0].to(seen.hidden.dtype))
    tokens, found = whole.view_as(seen.hidden), [*features]
    for layout in layouts:
        own = tokens[layout.start : layout.start + layout.units]
        found[layout.number] = layout.put(found[layout.number], own)
    return found


def mixed_layouts(tilings: Iterable[Tiling], device: torch.device) -> list[Tiles | Frames]:
    """Return how the tokens of each image or clip lie that has such units, in order."""
    found, start = list[Tiles | Frames](), 0
    for number, tiling in enumerate(tilings):
        if tiling.frames:
            found.append(Frames(number, start, tiling))
        elif tiling.is_interpolated:
            found.append(Tiles(number, start, tiling, tile_index(tiling, device)))
        else:
            continue
        start += found[-1].units
    return found


def mixing(layouts: Sequence[Tiles | Frames], grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return what averages ``[C, M, ...]`` over the patches of each token: ``[C, m, ...]``.

    Args:
        layouts: Of the C units.
        grid: Rows and columns of patches of a unit.
    """
    most = max(layout.width for layout in layouts)

    def mix(values: Tensor) -> Tensor:
        flat = values.flatten(2) if values.ndim > 2 else values[..., None]
        each = [layout.mix(flat[layout.start : layout.start + layout.units], grid) for layout in layouts]
        mixed: Tensor = _joined(each, most).view(len(values), most, *values.shape[2:])
        return mixed

    return mix


@dataclass(frozen=True, eq=False)
class Frames:
    """A clip, each frame of which is interpolated to the grid of its tiling.

    Attributes:
        number: Which of the call's clips it is.
        start: Its first unit, among those whose tokens are mixed.
        tiling: How it lies.
    """

    number: int
    start: int
    tiling: Tiling

    @property
    def units(self) -> int:
        """How many units it has: frames."""
        return self.tiling.frames

    @property
    def width(self) -> int:
        """The most tokens of a unit."""
        return self.tiling.counts[0]

    def mix(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[units, M, d]`` of patches to ``[units, m, d]`` of tokens."""
        laid = values.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
        pooled: Tensor = functional.interpolate(laid, size=[*self.tiling.grid], mode="bilinear")
        return pooled.flatten(2).transpose(1, 2)

    def take(self, packed: Tensor) -> Tensor:
        """``[placeholders, d]`` to the tokens of each unit, ``[units, m, d]``."""
        taken: Tensor = packed[: self.tiling.tokens].unflatten(0, (self.units, -1))
        return taken

    def put(self, packed: Tensor, tokens: Tensor) -> Tensor:
        """Return ``packed`` with the tokens of each unit in their places."""
        return torch.cat([tokens.flatten(0, 1), packed[self.tiling.tokens :]])

    def positions(self, device: torch.device) -> Tensor:
        """``[units, m, 2]`` float32, where each token begins on its unit."""
        return grid_positions(*self.tiling.grid, device).expand(self.units, -1, -1)


@dataclass(frozen=True, eq=False)
class Tiles:
    """An image, the merged grid of whose tiles is interpolated; its tokens belong to the tile that their center is in.

    Attributes:
        number: Which of the call's images it is.
        start: Its first tile, among the units whose tokens are mixed.
        tiling: How it lies.
        index: ``[tiles, m]`` int64, which of the grid's tokens each tile has; one past the last after a tile's own.
    """

    number: int
    start: int
    tiling: Tiling
    index: Tensor

    @property
    def units(self) -> int:
        """How many units it has: tiles."""
        return self.index.shape[0]

    @property
    def width(self) -> int:
        """The most tokens of a unit."""
        return self.index.shape[1]

    def mix(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[units, M, d]`` of patches to ``[units, m, d]`` of tokens."""
        (rows, columns), (down, across), (top, bottom, left, right) = grid, self.tiling.tiles, self.tiling.window
        laid = values.view(down, across, rows, columns, -1).permute(4, 0, 2, 1, 3).contiguous()
        window = laid.flatten(1, 2).flatten(2, 3)[None, :, top:bottom, left:right]
        lines = functional.interpolate(window, size=[*self.tiling.lines], mode="bilinear")[0]
        return of_tiles(lines.flatten(1).transpose(0, 1), self.index)

    def take(self, packed: Tensor) -> Tensor:
        """``[placeholders, d]`` to the tokens of each unit, ``[units, m, d]``."""
        return of_tiles(self._lines(packed)[:, :-1].flatten(0, 1), self.index)

    def put(self, packed: Tensor, tokens: Tensor) -> Tensor:
        """Return ``packed`` with the tokens of each unit in their places."""
        lines = self._lines(packed)
        made = of_lines(tokens[:, : self.width], self.index, self.tiling).view(*self.tiling.lines, -1)
        return torch.cat([packed[: self.tiling.counts[0]], torch.cat([made, lines[:, -1:]], dim=1).flatten(0, 1)])

    def positions(self, device: torch.device) -> Tensor:
        """``[units, m, 2]`` float32, where each token begins on its unit: a little below 0 where that is the tile
        before.
        """
        tiling, found = self.tiling, []
        (rows, columns), across, (top, bottom, left, right) = tiling.grid, tiling.tiles[1], tiling.window
        tile = torch.arange(self.units, device=device)[:, None]
        line = torch.div(self.index, tiling.lines[1], rounding_mode="floor")
        axes = (
            (line, torch.div(tile, across, rounding_mode="floor"), rows, top, bottom - top, tiling.lines[0]),
            (self.index - line * tiling.lines[1], tile % across, columns, left, right - left, tiling.lines[1]),
        )
        for token, number, side, start, length, tokens in axes:
            # Integers up to the quotient: positions of tokens that lie alike on two tiles are the same.
            found.append((token * length + (start - number * side) * tokens).float() / float(tokens * side))
        return torch.stack(found, dim=2)

    def _lines(self, packed: Tensor) -> Tensor:
        """``[lines, tokens of a line and its newline, d]``."""
        rows, columns = self.tiling.lines
        return packed[self.tiling.counts[0] :].view(rows, columns + 1, -1)


def _joined(parts: Sequence[Tensor], most: int) -> Tensor:
    """``[units, m, d]`` of several images, as one with m = ``most``."""
    padded = [functional.pad(part, (0, 0, 0, most - part.shape[1])) if part.shape[1] < most else part for part in parts]
    return padded[0] if len(padded) == 1 else torch.cat(padded)
