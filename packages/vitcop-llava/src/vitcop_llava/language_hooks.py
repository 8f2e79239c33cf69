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
from transformers.cache_utils import Cache, DynamicCache
from vitcop_core import DecoderView, Method

from vitcop_llava import layout
from vitcop_llava.cache import PrunedLayer, check_cache, install_layers, slot_columns
from vitcop_llava.families import Parts
from vitcop_llava.masks import segment_mask, slot_padding
from vitcop_llava.rope import last_row_attention
from vitcop_llava.sequence import Segment, cut_segment, put, restore, take
from vitcop_llava.state import Call, Run, active_call, set_call
from vitcop_llava.vision_hooks import encoded_of

Kwargs = dict[str, Any]


class LanguageHooks:
    """The hooks on base module, language model and decoder layers. Holds no state of any call."""

    def __init__(self, parts: Parts, method: Method, owner: object, finished: Callable[[Call], None]) -> None:
        self._parts, self._method, self._owner, self._finished = parts, method, owner, finished
        self._signature = inspect.signature(parts.base.forward)
        nominal = method.plan(parts.shape.num_layers, parts.visual_tokens)
        self._cut_layers = [cut.layer for cut in nominal.decoder]
        self.identity = nominal.is_identity

    def attach(self) -> Iterator[RemovableHandle]:
        """Registers the hooks, yielding the handle of each."""
        parts = self._parts
        yield parts.base.register_forward_pre_hook(self._open, with_kwargs=True)
        yield parts.base.register_forward_hook(self._close, always_call=True)
        if self.identity:
            return
        yield parts.language_model.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield parts.language_model.register_forward_hook(self._leave)
        for index, layer in enumerate(parts.decoder_layers):
            yield layer.register_forward_pre_hook(partial(self._before_layer, index), with_kwargs=True)
        for index in self._cut_layers:
            attention = parts.decoder_layers[index - 1].self_attn
            for name in ("q_proj", "k_proj"):
                yield getattr(attention, name).register_forward_hook(partial(self._keep_projection, index, name))

    # The base module: a call begins and ends.

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        call = Call(owner=self._owner, outer=active_call())
        output = (given.get("mm_encoder_outputs") or {}).get("image")
        if given.get("pixel_values") is not None or output is not None:
            check_cache(given.get("past_key_values"))
            layout.check_call(given, self._parts)
            if output is not None and not self.identity:
                call.encoded = encoded_of(output)
                layout.check_encoded(call.encoded, self._owner)
                call.origin = layout.image_origin(output.pooler_output, call.encoded)
            call.placeholders = layout.placeholders(given, self._parts)
        set_call(call)

    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = active_call()
        if call is not None and call.owner is self._owner:
            set_call(call.outer)
            if call.run is not None:
                call.run.release()
            if output is not None:
                self._finished(call)

    # The language model: columns become slots, and slots columns.

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> tuple[Any, Kwargs] | None:
        call = active_call()
        if call is None or call.owner is not self._owner:
            return None
        cache = kwargs.get("past_key_values")
        if call.placeholders is not None:
            return args, self._begin(call, module, kwargs)
        if isinstance(cache, Cache) and any(isinstance(layer, PrunedLayer) for layer in cache.layers):
            return args, self._continue(call, kwargs)
        return None

    def _begin(self, call: Call, module: nn.Module, kwargs: Kwargs) -> Kwargs:
        embeds: Tensor = kwargs["inputs_embeds"]
        use_cache = kwargs.get("use_cache")
        use_cache = module.config.use_cache if use_cache is None else use_cache
        cache = kwargs.get("past_key_values")
        if cache is None and use_cache:
            cache = DynamicCache(config=module.config)
        run = self._new_run(cache, kwargs, embeds.shape[1])
        call.run = run
        positions = layout.logical_positions(kwargs, embeds, run.past) - run.entry_dropped
        layout.lay_out(call, run, self._method, self._parts.shape.num_layers, positions)
        embeds = take(embeds, run.segment.columns)
        mask = self._make_mask(run, embeds, group=0, layer=0)
        given = {"inputs_embeds": embeds, "position_ids": run.segment.position_ids, "attention_mask": mask}
        return {**kwargs, **given, "past_key_values": cache}

    def _continue(self, call: Call, kwargs: Kwargs) -> Kwargs:
        embeds: Tensor = kwargs["inputs_embeds"]
        run = self._new_run(kwargs["past_key_values"], kwargs, embeds.shape[1])
        call.run = run
        positions = layout.logical_positions(kwargs, embeds, run.past) - run.entry_dropped
        mask = self._mask_of_group(run, embeds, layer=0)
        return {**kwargs, "position_ids": positions, "attention_mask": mask}

    def _new_run(self, cache: Cache | None, kwargs: Kwargs, length: int) -> Run:
        if cache is None:
            return Run(None, kwargs.get("attention_mask"), past=0)
        layers = install_layers(cache, self._parts.shape.num_layers)
        run = Run(cache, kwargs.get("attention_mask"), layers[0].get_seq_length(), layers[0].entry_dropped)
        layout.check_mask(run.attention_mask, run.past + length)
        return run

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = active_call()
        if call is None or call.owner is not self._owner or call.run is None or not call.run.segments:
            return None
        assert call.placeholders is not None  # there are segments
        run, placeholders = call.run, call.placeholders
        output.last_hidden_state = restore(output.last_hidden_state, run.segment, placeholders)
        states = getattr(output, "hidden_states", None)
        if states is not None:
            last = len(states) - 1  # the normed output, restored already
            output.hidden_states = tuple(
                output.last_hidden_state if index == last else self._restored(state, max(index - 1, 0), call)
                for index, state in enumerate(states)
            )
        return output

    def _restored(self, state: Tensor | None, layer: int, call: Call) -> Tensor | None:
        """The output of ``layer`` (or the first layer's input) at the caller's columns; None where it was not asked for."""
        if state is None or call.run is None or call.placeholders is None:
            return None
        return restore(state, call.run.segments[self._group_of(layer)], call.placeholders)

    def _group_of(self, layer: int) -> int:
        return sum(layer >= cut for cut in self._cut_layers)

    # The decoder layers: cuts, and every layer's own positions and mask.

    def _before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[Any, ...], Kwargs] | None:
        call = active_call()
        if call is None or call.owner is not self._owner or call.run is None:
            return None
        run, hidden = call.run, args[0]
        if not run.segments:
            mask = self._mask_of_group(run, hidden, layer=index)
            return args, {**kwargs, "attention_mask": mask}
        if run.rotary is None:
            run.rotary = kwargs["position_embeddings"]
        group = self._group_of(index)
        if index in self._cut_layers:
            hidden = self._cut(call, run, index, hidden)
            self._make_mask(run, hidden, group, layer=index)
        if run.cache is not None:
            self._describe(run, group, run.cache.layers[index])
        if group == 0:
            return None
        # Position ids serve FlashAttention alone, which takes their gaps for the seams of packed sequences.
        own = {"attention_mask": run.masks[group], "position_embeddings": run.rotary, "position_ids": None}
        return (hidden, *args[1:]), {**kwargs, **own}

    def _cut(self, call: Call, run: Run, index: int, hidden: Tensor) -> Tensor:
        before = run.segment
        cut, keeps, counts = layout.row_cut(call, run, index, hidden.device)
        selection = self._method.cut_decoder(cut, self._decoder_view(run, index, hidden), keeps)
        slots = layout.after_cut(run, counts)
        after, origin, chosen = cut_segment(before, selection.index, keeps, slots, selection.is_merged)
        assert run.rotary is not None  # set by the first layer
        if cut.reindex_positions:
            positions = origin + (before.position_ids[:, :1] if run.past else 0)
            after = replace(after, position_ids=positions)
            run.rotary = self._parts.rotary(hidden, positions)
        else:
            run.rotary = tuple(take(part.expand(origin.shape[0], -1, -1), origin) for part in run.rotary)
        if selection.hidden is not None:
            hidden = put(hidden, selection.hidden, chosen)
        if run.labels is not None:
            run.labels = run.labels.gather(1, selection.index.clamp(max=run.labels.shape[1] - 1))
        run.segments.append(after)
        run.cut_layers.append(index)
        run.projections.clear()
        return take(hidden, origin)

    def _decoder_view(self, run: Run, index: int, hidden: Tensor) -> DecoderView:
        segment, shape = run.segment, self._parts.shape
        if run.cache is not None:
            keys = run.cache.layers[index - 1].keys.to(hidden.device)
            own = keys[:, :, -segment.slots :]
        else:
            keys = own = run.projections["k_proj"].unflatten(-1, (shape.num_kv_heads, -1)).transpose(1, 2)
        places = segment.visual[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[3])
        return DecoderView(
            hidden=take(hidden, segment.visual),
            keys=own.gather(2, places),
            labels=run.labels,
            num_clusters=run.clusters,
            lengths=segment.lengths,
            attention=partial(self._attention, run, index, keys, rotate_keys=run.cache is None),
        )

    def _attention(self, run: Run, index: int, keys: Tensor, *, rotate_keys: bool) -> Tensor:
        attention = self._parts.decoder_layers[index - 1].self_attn
        assert run.rotary is not None  # set by the first layer
        queries = run.projections["q_proj"].unflatten(-1, (self._parts.shape.num_heads, -1))
        padding = self._padding(run, index - 1)
        row = last_row_attention(
            queries, keys, run.rotary, scale=attention.scaling, padding=padding, rotate_keys=rotate_keys
        )
        return row[:, -run.segment.slots :].gather(1, run.segment.visual)

    def _keep_projection(self, index: int, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        call = active_call()
        if call is not None and call.owner is self._owner and call.run is not None and call.run.segments:
            call.run.projections[name] = output

    # Cache rows and masks.

    def _describe(self, run: Run, group: int, layer: PrunedLayer) -> None:
        columns, has_padding = self._columns(run, run.segments[group], layer)
        layer.describe(columns, run.past + run.length, run.entry_dropped, has_padding=has_padding, group=group)

    def _columns(self, run: Run, segment: Segment, layer: PrunedLayer | None) -> tuple[Tensor, bool]:
        columns = segment.columns + run.past
        if segment.valid is not None:
            columns = columns.masked_fill(~segment.valid, -1)
        if layer is None or layer.physical_length == 0:
            return columns, segment.valid is not None
        held = slot_columns(layer, columns.shape[0], columns.device)
        return torch.cat([held, columns], dim=1), segment.valid is not None or layer.has_padding

    def _padding(self, run: Run, layer: int) -> Tensor | None:
        """Which slots the current segment's last layer attended to, itself included; None: all of them."""
        held = None if run.cache is None else run.cache.layers[layer]
        if held is not None:
            assert held.columns is not None  # described before its update
            return slot_padding(held.columns, run.attention_mask, has_padding=held.has_padding)
        columns, has_padding = self._columns(run, run.segment, None)
        return slot_padding(columns, run.attention_mask, has_padding=has_padding)

    def _make_mask(self, run: Run, like: Tensor, group: int, layer: int) -> Any:
        """The mask of the current segment, which begins at ``layer`` and has yet to be appended to its cache."""
        held = None if run.cache is None else run.cache.layers[layer]
        columns, has_padding = self._columns(run, run.segment, held)
        padding = slot_padding(columns, run.attention_mask, has_padding=has_padding)
        past = 0 if held is None else held.physical_length
        run.masks[group] = segment_mask(self._parts.config, like, run.segment.slots, past, padding)
        return run.masks[group]

    def _mask_of_group(self, run: Run, like: Tensor, layer: int) -> Any:
        """The mask of a layer that continues from its cache with nothing to cut."""
        assert run.cache is not None  # only a cache can be continued
        held = run.cache.layers[layer]
        if held.group not in run.masks:
            queries, padding = like.shape[1], None
            if held.has_padding or run.attention_mask is not None:
                columns = slot_columns(held, like.shape[0], like.device)
                new = torch.arange(queries, device=like.device) + run.past
                columns = torch.cat([columns, new.expand(like.shape[0], -1)], dim=1)
                padding = slot_padding(columns, run.attention_mask, has_padding=held.has_padding)
            run.masks[held.group] = segment_mask(self._parts.config, like, queries, held.physical_length, padding)
        return run.masks[held.group]
