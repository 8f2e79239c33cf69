"""The language model's hooks: logical lengths outside, physical lengths inside.

The base module's forward opens and closes a call. The language model's hooks drop the placeholders that Stage I did not
keep and put the hidden states back. The decoder layers' apply the cuts, and give each layer the positions and the mask
of its own segment. None of them decides anything: a method's cuts do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, StaticCache

from vitcop_core import DecoderCut, DecoderView, Method
from vitcop_llava.compat import CACHE
from vitcop_llava.families import Parts
from vitcop_llava.families.decoder import check_scoring
from vitcop_llava.hooks import layout
from vitcop_llava.hooks.active import active_call, expect_call, is_expected
from vitcop_llava.hooks.attending import keys_of
from vitcop_llava.hooks.capture import DecoderCapture
from vitcop_llava.hooks.checks import check_expected, check_ran, is_checkpointing
from vitcop_llava.hooks.counting import count_rows
from vitcop_llava.hooks.cutting import apply_cut, keep_positions, labels_after, restored
from vitcop_llava.hooks.patching import HookSwitch, Removable, any_compiled, eager, unless_compiling
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.hooks.reading import read_prompt
from vitcop_llava.hooks.runs import Keys, Prefill, Run
from vitcop_llava.hooks.scoring import Scoring, own_padding
from vitcop_llava.hooks.state import Call
from vitcop_llava.hooks.stepping import (
    STEPS,
    continues_growing,
    continues_static,
    growing_arguments,
    growing_step_of,
    is_plain_step,
    static_arguments,
    static_step_of,
)
from vitcop_llava.sequence.cache import KeyTap, check_cuts, install_layers, is_pruned
from vitcop_llava.sequence.deepstack import Deepstack
from vitcop_llava.sequence.foreign import remember
from vitcop_llava.sequence.rotary import by_axis, first_position, packed
from vitcop_llava.sequence.segment import Segment, take
from vitcop_llava.sequence.static import PrunedStaticLayer, check_room

Kwargs = dict[str, Any]


class LanguageHooks:
    """The hooks on language model and decoder layers. Holds no state of any call.

    Attributes:
        switch: The hooks on the decoder layers.
    """

    def __init__(
        self,
        parts: Parts,
        method: Method,
        planner: Planner,
        owner: int,
        capture: DecoderCapture | None = None,
        *,
        identity: bool,
    ) -> None:
        self._parts, self._method, self._planner, self._owner = parts, method, planner, owner
        self._capture, self._identity = capture, identity
        # Where the budget keeps everything, hooks are there for caches that another pruner has cut.
        self._guard, self._stays = unless_compiling if identity else eager, False
        self._enter_in_python, self._leave_in_python = self._guard(self._enter), self._guard(self._leave)
        before = (partial(self._before_layer, index) for index in range(len(parts.decoder_layers)))
        more = () if capture is None else capture.replacements
        self.switch = HookSwitch([*zip(parts.decoder_layers, before, strict=True)], more)

    @property
    def modules(self) -> list[nn.Module]:
        """What the hooks go on."""
        return [self._parts.language_model, *self._parts.decoder_layers]

    def attach(self) -> Iterator[Removable]:
        """Register the hooks, yielding the handle of each."""
        yield self._parts.language_model.register_forward_pre_hook(self._before, with_kwargs=True)
        yield self._parts.language_model.register_forward_hook(self._after, with_kwargs=True)
        yield self.switch
        self._stay_if_compiled()

    def _stay_if_compiled(self) -> None:
        """Leave the layers' hooks on where layers are compiled, by themselves or with what they are in: that code goes
        on with the hooks that it was made with, or without any.
        """
        if not self._stays and any_compiled([self._parts.base, *self.modules]):
            self._stays = True
            self.switch.guard(self._guard)
            self.switch.hold()

    # The language model: columns become slots, and slots columns.

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> tuple[Any, Kwargs] | None:
        if continues_static(kwargs.get(CACHE)):
            return args, static_arguments(self._parts, kwargs)
        if torch.compiler.is_compiling() and is_plain_step(kwargs):
            return None
        entered: tuple[Any, Kwargs] | None = self._enter_in_python(module, args, kwargs)
        return entered

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs, output: Any) -> Any:
        is_step = torch.compiler.is_compiling() and is_plain_step(kwargs)
        if is_step or continues_static(kwargs.get(CACHE)):
            return None
        return self._leave_in_python(output)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> tuple[Any, Kwargs] | None:
        self._stay_if_compiled()
        cache: Any = kwargs.get(CACHE)
        if continues_growing(cache):
            return args, growing_arguments(self._parts, kwargs, self.switch, is_compiled=self._stays)
        call = active_call(self._owner)
        if call is None:
            was_expected = is_expected(self._owner)
            expect_call(None)
            check_expected(is_opened=not was_expected)
            return None
        if call.placeholders is not None and not self._identity:
            given = self._begin(call, kwargs)
            if given is not None:
                return args, given
        if is_pruned(cache):
            return args, self._continue(call, kwargs)
        return None

    def _begin(self, call: Call, kwargs: Kwargs) -> Kwargs | None:
        """Return the arguments of a prefill with images; None where the mask hides them all."""
        embeds: Tensor = kwargs["inputs_embeds"]
        cache, use_cache = kwargs.get(CACHE), kwargs.get("use_cache")
        if is_checkpointing(self._parts):  # keeps no keys
            cache, use_cache = None, False
        elif cache is None and (self._parts.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        mask, position_ids = kwargs.get("attention_mask"), kwargs.get("position_ids")
        seen, counted = call.seen, None if self._parts.keeps_positions else position_ids
        if seen is None or not seen.is_of(mask, counted):  # somebody has changed them on the way
            where = {kind: source.where for kind, source in call.sources.items()}
            seen = read_prompt(where, {"attention_mask": mask, "position_ids": counted}, self._parts.token_ids)
        rows, is_padded = count_rows(call.sources, seen, mask, may_be_packed=mask is None and cache is None)
        call.sources = {kind: source for kind, source in call.sources.items() if source.images}
        if not call.sources:
            call.placeholders = None
            return None
        layers = () if cache is None else install_layers(cache, self._parts.shape.num_layers)
        what = (rows, layers, mask if is_padded else None, position_ids)
        run = layout.lay_out(call, self._planner, *what, keeps_positions=self._parts.keeps_positions)
        call.run = run
        run.open()
        if isinstance(cache, StaticCache):
            self._begin_filling(cache, call.past, call.past + embeds.shape[1])
        run.hold(self.switch)
        if cache is not None:
            check_cuts(cache, run.cut_layers)
        if run.segment.slots < run.length or run.segment.valid is not None:
            embeds = take(embeds, run.segment.columns)
        features = kwargs.get("deepstack_visual_embeds")
        if features is not None:
            run.deepstack = Deepstack(kwargs["visual_pos_masks"], features, run.segment)
        if self._planner.needs_prompt(call.plans):
            run.entry = embeds
        if self._capture is not None:
            run.replay = self._capture.begin(call.plans, self._method, kwargs, is_compiled=self._stays)
        run.keys = keys_of(self._parts, run, embeds, layer=0)
        ids = by_axis(run.segment.position_ids)
        given = {"inputs_embeds": embeds, "position_ids": ids, "attention_mask": run.keys.mask}
        return {**kwargs, **given, CACHE: cache, "use_cache": use_cache}

    def _begin_filling(self, cache: StaticCache, past: int, length: int) -> None:
        """Prepare a static cache of ``past`` tokens for a prefill that makes them ``length``."""
        layers = [layer for layer in cache.layers if isinstance(layer, PrunedStaticLayer)]
        check_room(length, min(layer.max_cache_len for layer in layers))
        for layer in layers:
            layer.begin_filling(past)
        self._hold_for(cache)

    def _hold_for(self, cache: StaticCache) -> None:
        """Leave the layers' hooks on for as long as a static cache lives: compiled steps trace them."""
        layer = cache.layers[0]
        if isinstance(layer, PrunedStaticLayer):
            self.switch.hold_for(layer.state)

    def _continue(self, call: Call, kwargs: Kwargs) -> Kwargs:
        cache = kwargs[CACHE]
        call.run = Run(install_layers(cache, self._parts.shape.num_layers))
        call.run.open(is_text=True)
        if not isinstance(cache, StaticCache):
            return growing_arguments(self._parts, kwargs, self.switch, is_compiled=self._stays)
        self._hold_for(cache)
        return static_arguments(self._parts, kwargs)

    def _leave(self, output: Any) -> Any:
        call = active_call(self._owner)
        if call is None or not isinstance(call.run, Prefill):
            return None
        run, restore = call.run, partial(restored, call.run)
        check_ran(run.ran, self._parts.shape.num_layers)
        remember(run.layers, layout.cut_row(call), run.segment.valid)
        output.last_hidden_state = restore(output.last_hidden_state, run.segment)
        states = getattr(output, "hidden_states", None)
        if states is not None:
            # The first is the input of layer 0, the last the normed output, which is restored already.
            segments = [run.segment_of(max(index - 1, 0)) for index in range(len(states) - 1)]
            inner = [None if h is None else restore(h, s) for h, s in zip(states, segments, strict=False)]
            output.hidden_states = (*inner, None if states[-1] is None else output.last_hidden_state)
        return output

    # The decoder layers: cuts, and every layer's own positions and mask.

    def _before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs | None = None
    ) -> tuple[tuple[Any, ...], Kwargs] | None:
        if kwargs is None:
            return None
        if STEPS in kwargs:
            return args, static_step_of(index, kwargs)
        if torch.compiler.is_compiling():  # what a graph holds without steps is not pruned
            return None
        call = active_call(self._owner)
        if call is not None and isinstance(call.run, Prefill):
            return self._prefill_layer(call, call.run, index, args, kwargs)
        own = growing_step_of(index, kwargs)
        return None if own is None else (args, own)

    def _prefill_layer(
        self, call: Call, run: Prefill, index: int, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[Any, ...], Kwargs]:
        hidden = args[0]
        if run.ran == 0:
            run.rotary = kwargs["position_embeddings"]
        run.ran += 1
        if index in run.cut_layers:
            hidden = self._cut(call, run, index, hidden)
            run.keys = keys_of(self._parts, run, hidden, layer=index)
            run.given = self._given(run, run.keys)
        if index + 1 in run.cut_layers:
            run.before = hidden  # of a layer that was replayed with others no cut reads this
            if not run.layers and not is_checkpointing(self._parts):
                run.tap = kwargs[CACHE] = KeyTap()
        keys, group, covered = run.keys, len(run.segments) - 1, run.past + run.length
        if run.layers:
            what = (keys.columns, covered, run.entry_dropped, run.text_tail)
            shift = run.shifts[index] + run.packed
            run.layers[index].describe(*what, has_padding=keys.has_padding, group=group, shift=shift)
        if group == 0:
            # A model with a window makes a mask of its own, which counts what it sees.
            return args, kwargs if self._parts.window is None else {**kwargs, "attention_mask": keys.mask}
        return (hidden, *args[1:]), {**kwargs, **run.given}

    def _given(self, run: Prefill, keys: Keys) -> Kwargs:
        """Return the arguments of the layers behind a cut that differ from the first layer's."""
        # Position ids serve FlashAttention alone, which takes their gaps for the seams of packed sequences.
        is_flash = "flash" in (self._parts.config._attn_implementation or "")
        ids = None if is_flash or self._parts.keeps_positions else run.segment.position_ids
        return {"attention_mask": keys.mask, "position_embeddings": run.rotary, "position_ids": ids}

    def _cut(self, call: Call, run: Prefill, index: int, hidden: Tensor) -> Tensor:
        cut, keeps, counts = layout.row_cut(call, run, index, hidden.device)
        selection = self._method.cut_decoder(cut, self._decoder_view(run, index, hidden), keeps)
        if cut.pack_positions and not self._parts.keeps_positions:
            run.packed = run.packed + layout.lost(run, counts, hidden.device)
        slots = layout.after_cut(run, counts)
        after, origin, hidden = apply_cut(run, selection, keeps, counts, slots, hidden)
        if not self._parts.keeps_positions:
            after = self._renumber(run, index, cut, after, origin, hidden)
        elif selection.appended_at is not None:
            after = keep_positions(run, after, selection.appended_at, origin)
        if run.deepstack is not None:
            run.deepstack.cut(run.segment.count, selection)
        is_last = index == run.cut_layers[-1]
        run.labels = None if is_last else labels_after(run.labels, selection.index, keeps)
        run.segments.append(after)
        run.before = run.tap = None
        return hidden

    def _renumber(
        self, run: Prefill, index: int, cut: DecoderCut, after: Segment, origin: Tensor, like: Tensor
    ) -> Segment:
        """Give the tokens after a cut the positions and rotations that it asks for; by default they keep theirs."""
        before = run.segment
        if cut.pack_positions:
            first = first_position(before.position_ids, own_padding(run, before)) - run.shift_step(index)
            positions = packed(first, own_padding(run, after), after.slots).expand(origin.shape[0], -1)
        elif cut.reindex_positions:
            # From the first token of the call on, which an earlier cut may have dropped.
            entered = run.segments[0]
            first = first_position(entered.position_ids, own_padding(run, entered))
            positions = packed(first, own_padding(run, before), before.slots).expand(origin.shape[0], -1)
            positions = positions.gather(1, origin)
        else:
            return after
        run.rotary = self._parts.rotary(like, positions)
        return replace(after, position_ids=positions)

    def _decoder_view(self, run: Prefill, index: int, hidden: Tensor) -> DecoderView:
        segment = run.segment
        held = run.layers[index - 1].held_keys if run.layers else None
        held = run.tap.keys if held is None and run.tap is not None else held
        if held is None:
            check_scoring(self._parts.decoder_layers[index - 1].self_attn)
        scoring = Scoring(self._parts, run, index, hidden, None if held is None else held.to(hidden.device))
        own = scoring.own_keys
        return DecoderView(
            hidden=segment.visual_of(hidden),
            keys=segment.visual_of(own, dim=2),
            labels=run.labels,
            num_clusters=run.clusters,
            lengths=segment.lengths,
            attention=scoring.of_last,
            own_attention=scoring.of_own_layer,
            attention_of=scoring.of_text,
            prompt=scoring.prompt,
            notes=run.notes,
        )
