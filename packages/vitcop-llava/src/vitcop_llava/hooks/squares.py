"""Stage I's hooks where images of any size come as flat patches, and each square of them becomes one token.

As the hooks of `vision`, but that the tower sees the patches of all units in one row, in an order of its own. What is
decided is decided for squares: what ranks them and what they are clustered by is the mean over their patches, and only
kept squares go through the projector. What the tower of Qwen3-VL hands to the first decoder layers waits until it is
known which these are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitcop_core import Method, VisionView
from vitcop_llava.families import Parts
from vitcop_llava.families.base import ScoredLayer
from vitcop_llava.families.grids import token_places
from vitcop_llava.hooks.active import active_tower, set_tower
from vitcop_llava.hooks.checks import check_held
from vitcop_llava.hooks.entering import entry_keys
from vitcop_llava.hooks.patching import Removable, Replacement, eager
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.hooks.stage_one import run_stage_one
from vitcop_llava.hooks.state import Held, TowerPass
from vitcop_llava.sequence.segment import grid_positions, on_device
from vitcop_llava.weights.offloading import weights_in_place


class SquareHooks:
    """The hooks on the scored layer's attention and on the projector. Holds no state of any call."""

    def __init__(self, parts: Parts, method: Method, planner: Planner, owner: int) -> None:
        self._parts, self._method, self._owner = parts, method, owner

    @property
    def modules(self) -> list[nn.Module]:
        """What the hooks go on."""
        parts, scored = self._parts, self._parts.scored
        if scored is None:
            return []
        own = [scored.attention, _projection(scored), parts.projector]
        return [parts.vision_tower, *own, *parts.deepstack_projectors]

    def attach(self) -> Iterator[Removable]:
        """Register the hooks, yielding the handle of each."""
        parts, scored = self._parts, self._parts.scored
        assert scored is not None  # a method that cuts here is refused without
        yield scored.attention.register_forward_pre_hook(eager(self._before_attention), with_kwargs=True)
        yield _projection(scored).register_forward_hook(eager(self._after_projection))
        yield parts.projector.register_forward_pre_hook(eager(self._before_projector))
        yield parts.projector.register_forward_hook(eager(self._after_projector))
        for module in parts.deepstack_projectors:
            yield Replacement(module, "forward", eager(partial(self._hold, module)))
        yield parts.vision_tower.register_forward_hook(eager(self._after_tower), always_call=True)

    def _hold(self, module: nn.Module, original: Callable[..., Tensor], given: Tensor) -> Tensor:
        """Stand in for a part of the tower whose result nobody reads before it is known what is kept.

        Hooks of others see what the part takes and gives, and may change it.
        """
        tower = active_tower(self._owner)
        if tower is None or tower.is_decided:
            return original(given)
        tower.held.append(Held(module, given, is_made=bool(module._forward_pre_hooks or module._forward_hooks)))
        return original(given) if tower.held[-1].is_made else given

    def _before_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tower = active_tower(self._owner)
        if tower is not None:
            tower.normed = args[0] if args else kwargs["hidden_states"]
            tower.rotary = kwargs.get("position_embeddings")

    def _after_projection(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        tower = active_tower(self._owner)
        if tower is not None:
            tower.made = (module, output)

    def _before_projector(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        tower = active_tower(self._owner)
        if tower is None:
            return None
        if tower.normed is None or tower.rotary is None:
            raise ValueError(
                "model must run the layer of its vision tower that Stage I reads, got a call without it: a part was "
                "replaced while it was pruned; leave the `with` block, and prune the model as it is then"
            )
        squares, images = as_squares(self._parts, args[0]), tower.encoded.images
        units = tuple(image.tiling.grid for image in images for _ in image.tiling.boxes)
        places = order_of(self._parts, units, squares.device)
        seen = square_view(self._parts, self._states(tower), tower.rotary, squares, units, places)
        frames = tuple(image.tiling.frames for image in images)
        seen = replace(seen, frames=frames if all(frames) else None)
        held = [as_squares(self._parts, each.given.to(squares.device)) for each in tower.held]
        beside = [by_unit(each, units, places) for each in held]
        kept, made = run_stage_one(self._method, seen, tower.encoded, beside=beside)
        tower.is_decided = True
        if kept is None:
            for each in tower.held:
                each.made = None if each.is_made else each.module(each.given)
            return None
        tower.places = kept if places is None else places.flatten()[kept]
        tower.patches = (squares.shape[0],)
        through = [each.index_select(0, tower.places) for each in (squares, *held)] if made is None else [*made]
        entering, *others = (each.unflatten(1, (-1, args[0].shape[-1])).flatten(0, 1) for each in through)
        # Here, inside the tower's forward: whoever brings in the weights of a whole tower takes them away at its end.
        for each, other in zip(tower.held, others, strict=True):
            if made is not None or not each.is_made:
                each.made = _put_back(tower, each.module(other))
        return (entering,)

    def _states(self, tower: TowerPass) -> Tensor:
        """Return queries, keys and values of the scored layer, as its attention has made them."""
        scored, noted, tower.made = self._parts.scored, tower.made, None
        assert scored is not None  # else nothing is attached
        assert tower.normed is not None  # checked by the caller
        # An adapter may have taken the module's place after the hook was put on it.
        if noted is None or noted[0] is not _projection(scored):
            return projected_states(scored, tower.normed)
        return noted[1]

    def _after_projector(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tower = active_tower(self._owner)
        return output if tower is None else _put_back(tower, output)

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tower = active_tower(self._owner)
        if tower is None:
            return
        set_tower(None)
        if output is None or not tower.held:
            return
        features: list[Tensor] = output.deepstack_features
        check_held(features, tower.held)
        features[:] = [own if each.made is None else each.made for own, each in zip(features, tower.held, strict=True)]


def _put_back(tower: TowerPass, output: Tensor) -> Tensor:
    """Return the tokens of all squares ``[N, d]``: those that were kept at their places, and 0; or all as they are."""
    if tower.places is None:
        return output
    room = output.new_zeros((*tower.patches, output.shape[-1]))
    return room.index_copy(0, tower.places.to(output.device), output)


def by_unit(values: Tensor, units: Sequence[tuple[int, int]], places: Tensor | None) -> Tensor:
    """Return ``[C, m, d]`` of values ``[N, d]`` in the tower's order; see `order_of`."""
    return values.unflatten(0, (len(units), -1)) if places is None else values[places]


def order_of(parts: Parts, units: tuple[tuple[int, int], ...], device: torch.device) -> Tensor | None:
    """Return where the tokens of each unit, row by row, stand in the tower's order; None where they stand like that.

    Args:
        parts: The model.
        units: Rows and columns of tokens of each unit.
        device: Of the result, ``[C, m]`` int64.
    """
    assert parts.squares is not None  # else there are no squares
    order = token_places(units, parts.squares.window)
    return None if order is None else on_device(order, device)


def as_squares(parts: Parts, entering: Tensor) -> Tensor:
    """Return what a projector is called with, patches ``[S, d_v]``, as ``[S / square, square * d_v]``."""
    assert parts.squares is not None  # else there are no squares
    return entering.reshape(entering.shape[0] // parts.squares.patches, -1)


def _projection(scored: ScoredLayer) -> nn.Module:
    """Return what makes queries, keys and values in one."""
    attention: Any = scored.attention
    module: nn.Module = attention.qkv
    return module


def projected_states(scored: ScoredLayer, normed: Tensor) -> Tensor:
    """Return queries, keys and values of the scored layer, one after the other: ``[S, d_v]`` to ``[S, 3 H e]``."""
    with weights_in_place(scored.attention):
        states: Tensor = _projection(scored)(normed)
    return states


def square_view(
    parts: Parts,
    states: Tensor,
    rotary: tuple[Tensor, Tensor],
    squares: Tensor,
    units: tuple[tuple[int, int], ...],
    places: Tensor | None,
) -> VisionView:
    """Return what a tower has shown of its squares.

    Args:
        parts: The model.
        states: ``[S, 3 H e]``, queries, keys and values of the scored layer; see `projected_states`.
        rotary: Cosines and sines of the patches, as it was called with.
        squares: ``[N, square * d_v]``, from `as_squares`.
        units: Rows and columns of tokens of each unit.
        places: ``[C, m]`` int64, from `order_of`.
    """
    scored, side = parts.scored, parts.squares
    assert scored is not None  # else nothing is attached
    assert side is not None  # likewise
    attention: Any = scored.attention
    projected = states.unflatten(-1, (3, scored.heads, -1))
    queries, keys = projected[:, 0], projected[:, 1]
    turn: Any = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    turned = turn(queries, keys, *rotary)

    def by_head(values: Tensor) -> Tensor:
        """``[S, H, e]`` of patches in the tower's order to ``[C, H, M, e]``."""
        own = values.unflatten(0, (-1, side.patches))
        own = own.unflatten(0, (len(units), -1)) if places is None else own[places]
        split: Tensor = own.flatten(1, 2).transpose(1, 2)
        return split

    counts = [rows * columns for rows, columns in units]
    sizes = None
    if len(set(counts)) > 1:
        sizes = on_device([count * side.patches for count in counts], squares.device)
    return VisionView(
        query_cls=None,
        queries=lambda: by_head(turned[0]),
        keys=by_head(keys),
        attended_keys=by_head(turned[1]),
        entry_keys=partial(entry_keys, parts),
        scale=scored.scale,
        positions=unit_positions(units, squares.device),
        hidden=by_unit(squares, units, places),
        sizes=sizes,
        pool=side.side,
    )


def unit_positions(units: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return ``[C, m, 2]`` float32: (row / rows, column / columns) of every token; 0 past a unit's own."""
    each = {grid: grid_positions(*grid, device) for grid in units}
    if len(each) == 1:
        return each[units[0]].expand(len(units), -1, -1)
    return nn.utils.rnn.pad_sequence([each[grid] for grid in units], batch_first=True)
