"""The language model's hooks: logical lengths outside, physical lengths inside.

The base module's hooks open and close a call. The language model's drop the placeholders that Stage I did not keep and
put the hidden states back. The decoder layers' apply the cuts, and give each layer the positions and the mask of its
own segment. None of them decides anything: a method's cuts do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import DynamicCache

from vitcop_core import DecoderCut, DecoderView, Method
from vitcop_llava import layout
from vitcop_llava.appending import append_segment
from vitcop_llava.attending import keys_of, mask_of_group, rotary_of_group
from vitcop_llava.cache import check_cache, check_cuts, check_follows, install_layers, is_forked, is_pruned
from vitcop_llava.call_checks import PIXELS, check_call, check_encoded, check_mask, check_text
from vitcop_llava.clips import check_frames
from vitcop_llava.families import Parts
from vitcop_llava.fingerprint import check_marked
from vitcop_llava.planning import Planner
from vitcop_llava.rope import last_row_attention, packed, reindexed
from vitcop_llava.scoring import Scoring, own_padding
from vitcop_llava.sequence import Segment, cut_segment, on_device, put, restore, survivor_slots, take
from vitcop_llava.state import Call, Run, Source, active_call, close_call, open_call
from vitcop_llava.vision_hooks import encoded_of

Kwargs = dict[str, Any]


class LanguageHooks:
    """The hooks on base module, language model and decoder layers. Holds no state of any call."""

    def __init__(
        self, parts: Parts, method: Method, planner: Planner, owner: int, finished: Callable[[Call], None]
    ) -> None:
        self._parts, self._method, self._planner, self._owner, self._finished = parts, method, planner, owner, finished
        self._signature = inspect.signature(parts.base.forward)
        self.identity = planner.keeps_all(parts)

    def attach(self) -> Iterator[RemovableHandle]:
        """Registers the hooks, yielding the handle of each."""
        parts = self._parts
        yield parts.base.register_forward_pre_hook(self._open, with_kwargs=True)
        yield parts.base.register_forward_hook(self._close, always_call=True)
        yield parts.language_model.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield parts.language_model.register_forward_hook(self._leave)
        for index, layer in enumerate(parts.decoder_layers):
            yield layer.register_forward_pre_hook(partial(self._before_layer, index), with_kwargs=True)
            for name in ("q_proj", "k_proj"):
                projection: nn.Module = getattr(layer.self_attn, name)
                yield projection.register_forward_hook(partial(self._keep_projection, index, name))

    # The base module: a call begins and ends.

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        call = open_call(self._owner)
        cache = given.get("past_key_values")
        past = cache.get_seq_length() if isinstance(cache, DynamicCache) else 0
        call.is_fresh = cache is None or (isinstance(cache, DynamicCache) and past == 0)
        sources = self._sources(given)
        if sources and not self.identity:
            check_cache(cache)
            for kind, source in sources.items():
                output = (given.get("mm_encoder_outputs") or {}).get(kind)
                if output is not None:
                    source.encoded = check_encoded(encoded_of(output), self._owner)
                    source.origin = layout.image_origin(output.pooler_output, source.encoded)
                    if kind == "video":
                        clips = [image.tiling for image in source.images]
                        check_frames([c.frames for c in clips], clips[0].tokens // clips[0].frames, source.where)
            check_call(given, self._parts)
        if is_pruned(cache) or (sources and not self.identity):
            check_mask(given, past)
        check_marked(cache, self._parts.base)
        if call.is_fresh and not self.identity and given.get("input_ids") is not None:
            check_text(given["input_ids"], {k: v for k, v in self._parts.token_ids.items() if k not in sources})
        if sources:
            call.sources, call.placeholders = sources, layout.either([source.where for source in sources.values()])
        elif is_forked(cache):
            check_follows(layout.either([source.where for source in self._sources(given, every=True).values()]))

    def _sources(self, given: Kwargs, *, every: bool = False) -> dict[str, Source]:
        """The images and clips of a call, by kind; with ``every``, also the kinds that it has none of."""
        found, outputs = {}, given.get("mm_encoder_outputs") or {}
        for kind, token_id in self._parts.token_ids.items():
            pixels = given.get(PIXELS[kind])
            if every or outputs.get(kind) is not None or (pixels is not None and len(pixels) > 0):
                found[kind] = Source(layout.placeholders(given, self._parts, token_id))
        return found

    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = active_call(self._owner)
        if call is not None:
            close_call(call)
            if output is not None:  # there is none after an exception
                self._finished(call)

    # The language model: columns become slots, and slots columns.

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> tuple[Any, Kwargs] | None:
        call = active_call(self._owner)
        cache: Any = kwargs.get("past_key_values")
        if call is None:
            return None
        if call.placeholders is not None and not self.identity:
            return args, self._begin(call, kwargs)
        if is_pruned(cache):
            if call.placeholders is not None:
                check_cuts(cache, cut_layers=())
            return args, self._continue(call, kwargs)
        return None

    def _begin(self, call: Call, kwargs: Kwargs) -> Kwargs:
        embeds: Tensor = kwargs["inputs_embeds"]
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if cache is None and (self._parts.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self._parts.config)
        call.run = run = self._new_run(cache, kwargs)
        positions = layout.logical_positions(kwargs, embeds, run.past) - run.entry_dropped
        layout.lay_out(call, run, self._planner, positions)
        if cache is not None:
            check_cuts(cache, run.cut_layers)
        embeds = take(embeds, run.segment.columns)
        if any(cut.stage == "recycle" for plan in call.plans if plan is not None for cut in plan.decoder):
            run.entry = embeds
        run.keys = keys_of(self._parts, run, embeds, layer=0)
        given = {"inputs_embeds": embeds, "position_ids": run.segment.position_ids, "attention_mask": run.keys.mask}
        return {**kwargs, **given, "past_key_values": cache}

    def _continue(self, call: Call, kwargs: Kwargs) -> Kwargs:
        embeds: Tensor = kwargs["inputs_embeds"]
        call.run = run = self._new_run(kwargs["past_key_values"], kwargs)
        run.positions = positions = layout.logical_positions(kwargs, embeds, run.past) - run.entry_dropped
        return {**kwargs, "position_ids": positions, "attention_mask": mask_of_group(self._parts, run, embeds, layer=0)}

    def _new_run(self, cache: DynamicCache | None, kwargs: Kwargs) -> Run:
        mask: Tensor | None = kwargs.get("attention_mask")
        if cache is None:
            return Run(None, mask, past=0)
        layers = install_layers(cache, self._parts.shape.num_layers)
        run = Run(layers, mask, layers[0].get_seq_length(), layers[0].entry_dropped)
        run.shifts = [layer.shift for layer in layers]
        return run

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = active_call(self._owner)
        if call is None or call.run is None or call.placeholders is None or not call.run.segments:
            return None
        run, placeholders = call.run, call.placeholders
        output.last_hidden_state = restore(output.last_hidden_state, run.segment, placeholders)
        states = getattr(output, "hidden_states", None)
        if states is not None:
            # The first is the input of layer 0, the last the normed output, which is restored already.
            segments = [run.segment_of(max(index - 1, 0)) for index in range(len(states) - 1)]
            inner = [None if h is None else restore(h, s, placeholders) for h, s in zip(states, segments, strict=False)]
            output.hidden_states = (*inner, None if states[-1] is None else output.last_hidden_state)
        return output

    # The decoder layers: cuts, and every layer's own positions and mask.

    def _before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[Any, ...], Kwargs] | None:
        call = active_call(self._owner)
        if call is None or call.run is None:
            return None
        run, hidden = call.run, args[0]
        if not run.segments:
            own = {"attention_mask": mask_of_group(self._parts, run, hidden, layer=index)}
            return args, {**kwargs, **own, **rotary_of_group(self._parts, run, hidden, layer=index)}
        if run.rotary is None:
            run.rotary = kwargs["position_embeddings"]
        if index in run.cut_layers:
            hidden = self._cut(call, run, index, hidden)
            run.keys = keys_of(self._parts, run, hidden, layer=index)
        keys, group, covered = run.keys, len(run.segments) - 1, run.past + run.length
        assert keys is not None  # made where the segment began
        if run.layers is not None:
            what = (keys.columns, covered, run.entry_dropped, run.text_tail)
            shift = run.shifts[index] + run.packed
            run.layers[index].describe(*what, has_padding=keys.has_padding, group=group, shift=shift)
        if group == 0:
            return None
        # Position ids serve FlashAttention alone, which takes their gaps for the seams of packed sequences.
        own = {"attention_mask": keys.mask, "position_embeddings": run.rotary, "position_ids": None}
        return (hidden, *args[1:]), {**kwargs, **own}

    def _cut(self, call: Call, run: Run, index: int, hidden: Tensor) -> Tensor:
        cut, keeps, counts = layout.row_cut(call, run, index, hidden.device)
        selection = self._method.cut_decoder(cut, self._decoder_view(run, index, hidden), keeps)
        if cut.pack_positions:
            run.packed = run.packed + layout.lost(run, counts, hidden.device)
        slots = layout.after_cut(run, counts)
        assert run.rotary is not None  # set by the first layer
        if selection.appended is None or selection.appended_at is None:
            survivors = survivor_slots(run.segment, selection.index, keeps)
            if selection.hidden is not None:
                hidden = put(hidden, selection.hidden, survivors)
            along = (hidden, *run.rotary)
            after, origin, moved = cut_segment(run.segment, survivors, keeps, slots, selection.is_merged, along)
            hidden, cosines, sines = moved
            run.rotary = (cosines, sines)
        else:
            totals = None if keeps is None else on_device(counts, hidden.device)
            after, origin = append_segment(run.segment, selection.index, selection.appended_at, totals, slots)
            hidden = take(torch.cat([hidden, selection.appended], dim=1), origin)
        after = self._renumber(run, index, cut, after, origin, hidden)
        if run.labels is not None:
            run.labels = run.labels.gather(1, selection.index.clamp(max=run.labels.shape[1] - 1))
        run.segments.append(after)
        run.projections.clear()
        return hidden

    def _renumber(self, run: Run, index: int, cut: DecoderCut, after: Segment, origin: Tensor, like: Tensor) -> Segment:
        """Gives the tokens after a cut the positions and rotations that it asks for; by default they keep theirs."""
        if cut.pack_positions:
            first = reindexed(run.segment.position_ids, own_padding(run, run.segment))[:, :1] - run.shift_step(index)
            positions = packed(first, own_padding(run, after), after.slots).expand(origin.shape[0], -1)
        elif cut.reindex_positions:
            positions = reindexed(run.segment.position_ids, own_padding(run, run.segment)).gather(1, origin)
        else:
            return after
        run.rotary = self._parts.rotary(like, positions)
        return replace(after, position_ids=positions)

    def _decoder_view(self, run: Run, index: int, hidden: Tensor) -> DecoderView:
        segment, shape = run.segment, self._parts.shape
        held = None if run.layers is None else run.layers[index - 1].keys
        if held is None:
            keys = own = run.projections["k_proj"].unflatten(-1, (shape.num_kv_heads, -1)).transpose(1, 2)
        else:
            keys = held.to(hidden.device)
            own = keys[:, :, -segment.slots :]
        places = segment.visual[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[3])
        scoring = Scoring(self._parts, run, index, hidden, keys, rotate_keys=held is None)
        return DecoderView(
            hidden=take(hidden, segment.visual),
            keys=own.gather(2, places),
            labels=run.labels,
            num_clusters=run.clusters,
            lengths=segment.lengths,
            attention=partial(self._attention, run, index, keys, rotate_keys=held is None),
            own_attention=scoring.of_own_layer,
            attention_of=scoring.of_text,
            prompt=scoring.prompt,
            notes=run.notes,
        )

    def _attention(self, run: Run, index: int, keys: Tensor, *, rotate_keys: bool) -> Tensor:
        attention: Any = self._parts.decoder_layers[index - 1].self_attn
        assert run.rotary is not None  # set by the first layer
        queries = run.projections["q_proj"].unflatten(-1, (self._parts.shape.num_heads, -1))
        padding = None if run.keys is None else run.keys.padding
        row = last_row_attention(
            queries, keys, run.rotary, scale=attention.scaling, padding=padding, rotate_keys=rotate_keys
        )
        return row[:, -run.segment.slots :].gather(1, run.segment.visual)

    def _keep_projection(self, index: int, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        call = active_call(self._owner)
        if call is not None and call.run is not None and index + 1 in call.run.cut_layers:
            call.run.projections[name] = output
