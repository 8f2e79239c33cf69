"""Runs an unpruned model once, and takes down what ViTCoP would rank its visual tokens by, in every layer.

Attention is computed from queries and keys for the rows that matter alone, under whatever attention backend the model
has; what is kept of a layer is a number or two for each token.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitcop_core import VisionView, ops
from vitcop_core.methods import patch_saliency
from vitcop_llava.families import Parts, locate
from vitcop_llava.families.base import ScoredLayer
from vitcop_llava.families.decoder import as_heads, check_scoring, rotate
from vitcop_llava.hooks.lines import mixed_units
from vitcop_llava.hooks.mixing import mixed_layouts, mixing
from vitcop_llava.hooks.squares import as_squares, order_of, projected_states, square_view
from vitcop_llava.pruner import active_settings
from vitcop_llava.sequence.rotary import row_attention
from vitcop_llava.sequence.segment import on_device, take
from vitcop_llava.tools.analysis.prompts import Prompt, lay_out_prompt

Array = NDArray[np.float32]

# Stage I's share at the command line's default budget, a ninth: 0.2 + 0.9 / 9.
_BEST = Fraction(3, 10)


@dataclass(frozen=True, eq=False)
class Observation:
    """What one row of a prompt shows: its n visual tokens in L layers, newlines of tiles left out.

    Attributes:
        attention: ``[L, n]`` float32, what the last prompt token pays to each visual token, mean over heads; the sum of
            a layer is the share of its attention that goes to the picture.
        text_attention: ``[L, n]`` float32, the same of all text tokens after the last image, mean over them.
        key_norms: ``[L, n]`` float32, what ViTCoP ranks by in a cut before the layer that follows.
        cls_attention: For each unit (image, tile or frame), ``[m]`` float32: what CLS pays to those of its patches
            that the model uses, sum over heads, in the layer that Stage I reads; pooled or interpolated where the model
            makes its tokens so. Of a tower without a CLS token what each of them receives, mean over heads and tokens.
        grid: Rows and columns of the first unit, whose tokens come first.
        has_cls: Whether the tower has a CLS token.
        cutoffs: For each unit of the first image or clip, the cutoff distance that ``cutoff_distance="auto"`` finds
            among its 30 % best tokens, which is what Stage I leaves at a ninth; empty where none was found.
    """

    attention: Array
    text_attention: Array
    key_norms: Array
    cls_attention: tuple[Array, ...]
    grid: tuple[int, int]
    has_cls: bool = True
    cutoffs: tuple[float, ...] = ()


def found_cutoffs(seen: VisionView, saliency: Tensor, counts: Sequence[int]) -> list[float]:
    """Return the cutoff distance that fits each unit's best tokens, by the keys that ViTCoP clusters.

    Args:
        seen: The units.
        saliency: ``[C, m]``, what their tokens are ranked by.
        counts: How many of the m tokens are each unit's own.

    Returns:
        A distance for each; nan for a unit without tokens.
    """
    features, found = seen.key_features(), list[float]()
    for unit, count in enumerate(counts):
        if not count:
            found.append(math.nan)
            continue
        best = ops.top_tokens(saliency[unit, None, :count], max(1, int(_BEST * count)))
        found += ops.auto_cutoff(features[unit, best]).tolist()
    return found


@torch.no_grad()
def observe(model: nn.Module, **inputs: Any) -> list[Observation]:
    """Run the model on a prompt, without a cache, and leave it unchanged.

    Args:
        model: One that `prune` takes, unpruned.
        inputs: What its forward takes: ``input_ids`` with images or clips in each row, and, as far as the model has
            them, ``attention_mask``, ``pixel_values``, ``image_sizes`` and ``pixel_values_videos``.

    Returns:
        One observation for each row.

    Raises:
        TypeError: The model is of another family, or an input is of the wrong type.
        ValueError: The model is pruned, a row has neither image nor clip, prompt and images disagree, or a layer gives
            what is not finite.
    """
    parts = locate(model)
    if active_settings(parts.base) is not None:
        raise ValueError("model must not be pruned while it is observed; remove() the pruner first")
    if parts.scored is None:
        raise ValueError(f"model must have a vision tower that Stage I can read, got {parts.obstacle}")
    check_scoring(parts.decoder_layers[0].self_attn)
    prompt = lay_out_prompt(parts, inputs)
    recorder = _Recorder(parts, parts.scored, prompt)
    with ExitStack() as stack:
        for handle in recorder.attach():
            stack.callback(handle.remove)
        parts.base(**prompt.inputs, use_cache=False)
    return recorder.observations()


class _Recorder:
    """The hooks of one run, and what they have seen."""

    def __init__(self, parts: Parts, scored: ScoredLayer, prompt: Prompt) -> None:
        self._parts, self._scored, self._prompt = parts, scored, prompt
        self._projections: dict[str, Tensor] = {}
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._rows: dict[str, list[Tensor]] = {"attention": [], "text_attention": [], "key_norms": []}
        self._saliencies: list[list[Array]] = []
        self._cutoffs: list[list[float]] = []
        self._tower: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def attach(self) -> Iterator[RemovableHandle]:
        """Register the hooks, yielding the handle of each."""
        parts = self._parts
        attentions: list[tuple[str, Any]] = [("", layer.self_attn) for layer in parts.decoder_layers]
        if parts.squares is None:
            attentions.append(("vision ", self._scored.attention))
            yield parts.vision_tower.register_forward_hook(self._after_tower)
        else:
            yield self._scored.attention.register_forward_pre_hook(self._before_scored, with_kwargs=True)
            yield parts.projector.register_forward_pre_hook(self._before_projector)
        for prefix, attention in attentions:
            for name in ("q_proj", "k_proj"):
                yield getattr(attention, name).register_forward_hook(partial(self._keep, prefix + name))
        for index, layer in enumerate(parts.decoder_layers):
            yield layer.register_forward_pre_hook(self._before_layer, with_kwargs=True)
            yield layer.register_forward_hook(partial(self._after_layer, index))

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._projections[name] = output

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        source, heads, scored = self._prompt.sources[len(self._saliencies)], self._scored.heads, self._scored
        projected = (self._projections.pop(f"vision {name}") for name in ("q_proj", "k_proj"))
        queries, keys = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in projected)

        def view(units: Sequence[int], tokens: int, **more: Any) -> VisionView:
            own = on_device(units, keys.device)
            return VisionView(
                query_cls=queries[own, :, 0] if scored.has_cls else None,
                keys=keys[own],
                scale=scored.scale,
                positions=keys.new_empty(0),
                hidden=keys.new_empty((len(units), tokens, 0)),
                queries=lambda: queries[own],
                **more,
            )

        mixed = mixed_units(source.tilings, self._parts)
        whole = [unit for unit in range(keys.shape[0]) if unit not in {*mixed}]
        ranked = dict[int, tuple[Array, float]]()
        if whole:
            grid = source.tilings[0].grid
            seen = view(whole, grid[0] * grid[1], pool=source.pool, grid=self._parts.grid)
            ranked |= zip(whole, self._rank(seen, [grid[0] * grid[1]] * len(whole)), strict=True)
        if mixed:
            layouts = mixed_layouts(source.tilings, keys.device)
            counts = [count for tiling in source.tilings for count in tiling.counts]
            seen = view(mixed, max(layout.width for layout in layouts), mix=mixing(layouts, self._parts.grid))
            ranked |= zip(mixed, self._rank(seen, [counts[unit] for unit in mixed]), strict=True)
        self._note([ranked[unit] for unit in range(keys.shape[0])], {*mixed})

    def _before_scored(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tower = (args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"])

    def _before_projector(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert self._tower is not None  # the scored layer comes before
        parts, source = self._parts, self._prompt.sources[len(self._saliencies)]
        squares, units = as_squares(parts, args[0]), tuple(t.grid for t in source.tilings for _ in t.boxes)
        normed, rotary = self._tower
        states = projected_states(self._scored, normed)
        seen = square_view(parts, states, rotary, squares, units, order_of(parts, units, squares.device))
        self._note(self._rank(seen, [rows * columns for rows, columns in units]))

    def _rank(self, seen: VisionView, counts: Sequence[int]) -> list[tuple[Array, float]]:
        """Return what the tokens of each unit are ranked by, and which cutoff distance fits its best ones."""
        pooled = patch_saliency(seen, "auto")
        if not bool(pooled.isfinite().all()):
            raise ValueError(
                "model must give finite attention in its vision tower, got others in this dtype; try float32"
            )
        own = (unit[:count] for unit, count in zip(pooled.float().cpu().numpy(), counts, strict=True))
        return [*zip(own, found_cutoffs(seen, pooled, counts), strict=True)]

    def _note(self, ranked: Sequence[tuple[Array, float]], mixed: Container[int] = ()) -> None:
        """Take down what was found of the units of a source; of those that are not ``mixed``, as far as it is used."""
        source, used = self._prompt.sources[len(self._saliencies)], list[Array]()
        lying = [(tiling.grid, box) for tiling in source.tilings for box in tiling.boxes]
        for unit, ((saliency, _), (grid, (top, bottom, left, right))) in enumerate(zip(ranked, lying, strict=True)):
            used.append(saliency if unit in mixed else saliency.reshape(grid)[top:bottom, left:right].ravel())
        self._saliencies.append(used)
        self._cutoffs.append([cutoff for _, cutoff in ranked])

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rotary = kwargs["position_embeddings"]

    def _after_layer(self, index: int, module: Any, args: tuple[Any, ...], output: Any) -> None:
        prompt = self._prompt
        queries, keys = self._projections.pop("q_proj"), self._projections.pop("k_proj")
        assert self._rotary is not None  # set as the layer began
        cosines, sines = (part.expand(queries.shape[0], -1, -1) for part in self._rotary)
        attention = module.self_attn
        keys = as_heads(attention, keys, "k").transpose(1, 2)
        self._book(index, "key_norms", ops.key_norm(keys))
        keys = rotate(attention, keys, cosines, sines)
        padding = None if prompt.padding is None else prompt.padding.to(keys.device)
        for name, (places, weights) in (("attention", prompt.last), ("text_attention", prompt.text)):
            at = places.to(keys.device)
            rows = as_heads(attention, take(queries, at), "q").transpose(1, 2)
            rows = rotate(attention, rows, take(cosines, at), take(sines, at))
            scale = attention.scaling
            paid = row_attention(rows, keys, at, weights.to(keys.device), scale=scale, padding=padding)
            self._book(index, name, paid)

    def _book(self, index: int, name: str, values: Tensor) -> None:
        found = values.float().cpu()
        # Keys of padding may be anything.
        seen = found if self._prompt.padding is None else found[self._prompt.padding.cpu()]
        if not bool(seen.isfinite().all()):
            raise ValueError(
                f"model must give finite {name.replace('_', ' ')} in layer {index}, got others in this dtype; try "
                "float32"
            )
        self._rows[name].append(found)

    def observations(self) -> list[Observation]:
        """Return what was seen of each row."""
        units = [self._units(number) for number in range(len(self._saliencies))]
        rows = {name: torch.stack(values, dim=1).numpy() for name, values in self._rows.items()}
        found = []
        for row, members in enumerate(self._prompt.rows):
            kept = {name: values[row][:, members.columns] for name, values in rows.items()}
            seen = [unit for source, image in members.images for unit in units[source][image]]
            source, image = members.images[0]
            start = sum(len(tiling.boxes) for tiling in self._prompt.sources[source].tilings[:image])
            stop = start + len(self._prompt.sources[source].tilings[image].boxes)
            cutoffs = tuple(cutoff for cutoff in self._cutoffs[source][start:stop] if not math.isnan(cutoff))
            found.append(
                Observation(
                    **kept, cls_attention=tuple(seen), grid=members.grid, has_cls=self._scored.has_cls, cutoffs=cutoffs
                )
            )
        return found

    def _units(self, number: int) -> list[list[Array]]:
        """Return, by image or clip of a source, what the tokens are ranked by of each unit that has any."""
        given = iter(self._saliencies[number])
        tilings = self._prompt.sources[number].tilings
        return [[unit for _ in tiling.boxes if (unit := next(given)).size] for tiling in tilings]
