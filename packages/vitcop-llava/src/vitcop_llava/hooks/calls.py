"""What opens and closes a call: around the base module's forward, and around ``generate``, which may encode ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.masking_utils import create_masks_for_generate

from vitcop_llava.compat import CACHE, ENCODE_AHEAD, GENERATE_MASKS, MAKE_CANDIDATES, PLACEHOLDER_MASK, named_cache
from vitcop_llava.families import Parts
from vitcop_llava.families.clips import stacked
from vitcop_llava.families.grids import readable_grids
from vitcop_llava.hooks import layout
from vitcop_llava.hooks.active import (
    active_call,
    active_generation,
    announce_continuation,
    close_call,
    encoding_ahead,
    expect_call,
    generating,
    open_call,
    without_call,
)
from vitcop_llava.hooks.arguments import by_name, names_of
from vitcop_llava.hooks.carrying import encoded_of
from vitcop_llava.hooks.checks import PIXELS, check_absent, check_tokens
from vitcop_llava.hooks.counting import either
from vitcop_llava.hooks.opening import check_clips, check_continuing, check_opening
from vitcop_llava.hooks.patching import HookSwitch, Removable, Replacement, eager
from vitcop_llava.hooks.reading import read_prompt
from vitcop_llava.hooks.state import Call, Source
from vitcop_llava.hooks.stepping import is_growing_step, is_static_step, or_take_back, whole_mask
from vitcop_llava.sequence.cache import cached_length, is_pruned
from vitcop_llava.sequence.static import is_static_pruned

Kwargs = dict[str, Any]


class CallHooks:
    """Opens and closes a call around the base module's forward. Holds no state of any call.

    Compiled code that calls the base module leaves it, and whatever is pruned, to Python. Where the budget keeps every
    token there is nothing to leave, nor in a step of decoding with a static cache: that asks for no call, compiled or
    not.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Parts,
        owner: int,
        finished: Callable[[Call], None],
        switch: HookSwitch,
        *,
        identity: bool,
    ) -> None:
        self._model, self._parts, self._owner, self._finished = model, parts, owner, finished
        self._switch = switch
        self._names, self._base_names = (names_of(m.forward) for m in (model, parts.base))
        self._identity, self._has_run = identity, False
        self._prune_in_python = eager(self._prune)

    def attach(self) -> Iterator[Removable]:
        """Put the hooks on, yielding what takes each off."""
        yield Replacement(self._parts.base, "forward", self._run)
        yield Replacement(self._model, "generate", self._generate)
        if hasattr(self._model, ENCODE_AHEAD):
            yield Replacement(self._model, ENCODE_AHEAD, self._encode_ahead)
        yield Replacement(self._model, GENERATE_MASKS, self._generate_masks, create_masks_for_generate)
        if not self._identity:
            if hasattr(self._parts.base, PLACEHOLDER_MASK):
                yield Replacement(self._parts.base, PLACEHOLDER_MASK, self._placeholder_mask)
            announce = self._unless_step(self._announce, self._names)
            expect = self._unless_step(self._expect, self._base_names)
            expect_no_more = self._unless_step(self._expect_no_more, self._base_names)
            if hasattr(self._model, MAKE_CANDIDATES):
                yield Replacement(self._model, MAKE_CANDIDATES, self._make_candidates)
            yield self._model.register_forward_pre_hook(announce, with_kwargs=True)
            yield self._parts.base.register_forward_pre_hook(expect, with_kwargs=True)
            # Not one that is always called: compiled code would be good for this very hook alone.
            yield self._parts.base.register_forward_hook(expect_no_more, with_kwargs=True)

    def _unless_step(self, hook: Callable[..., None], names: Sequence[str]) -> Callable[..., None]:
        """Return ``hook`` as one that compiled code runs in Python, but does without in a step of decoding."""
        in_python = eager(hook)

        def guarded(module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs, *output: Any) -> None:
            if torch.compiler.is_compiling() and is_static_step(by_name(names, args, kwargs), self._switch):
                return
            in_python(kwargs)

        return guarded

    def _generate_masks(self, original: Callable[..., Any], **kwargs: Any) -> Any:
        """Return the mask that `generate` gives the model for a static cache: of four dimensions, but for pruned
        layers, which need one each and are given the caller's.
        """
        cache, mask = kwargs.get(CACHE), kwargs.get("attention_mask")
        if not isinstance(cache, StaticCache):
            return original(**kwargs)
        is_prompt = kwargs["inputs_embeds"].shape[1] > 1 or bool(kwargs.get("is_first_iteration"))
        if is_static_pruned(cache.layers[0]):
            return mask if is_prompt else whole_mask(mask, cache)
        return mask if is_prompt and not self._identity else original(**kwargs)

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        config = args[1] if len(args) > 1 else kwargs.get("generation_config")
        with generating(self._owner, is_draft=bool(getattr(config, "is_assistant", None))):
            return original(*args, **kwargs)

    def _encode_ahead(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with encoding_ahead(self._owner):
            return original(*args, **kwargs)

    def _placeholder_mask(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the mask of each kind of placeholder. Their number is known on the host; a wrong one is left to
        transformers, which refuses it. On a device without values there is nothing to count.
        """
        call, given = active_call(self._owner), by_name(names_of(original), args, kwargs)
        embeds, kinds = given["inputs_embeds"], self._parts.token_ids
        if call is None or call.placeholders is None or call.placeholders.shape != embeds.shape[:2]:
            return original(*args, **kwargs)
        features = {kind: given.get(f"{kind}_features") for kind in kinds}
        sizes = {kind: each.numel() // embeds.shape[-1] for kind, each in features.items() if each is not None}
        if not embeds.is_meta and (call.seen is None or not call.seen.holds(sizes)):
            return original(*args, **kwargs)
        found = (
            call.sources[kind].where if kind in call.sources else layout.placeholders(given, self._parts, token_id)
            for kind, token_id in kinds.items()
        )
        masks = tuple(each[..., None].to(embeds.device) for each in found)
        return masks if len(masks) > 1 else masks[0]

    def _announce(self, kwargs: Kwargs) -> None:
        # Verifying candidates asks for the logits of all of them, and of the token before.
        generation, last = active_generation(self._owner), kwargs.get("logits_to_keep")
        verified = None if generation is None else generation.verified
        is_verifying = verified is not None and named_cache(kwargs).get(CACHE) is verified
        announce_continuation(self._owner, last - 1 if is_verifying and isinstance(last, int) and last > 0 else 0)

    def _make_candidates(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        generation = active_generation(self._owner)
        if generation is not None:
            given = by_name(names_of(original), args, kwargs)
            generation.verified = named_cache(given["model_kwargs"]).get(CACHE)
        return original(*args, **kwargs)

    def _expect(self, kwargs: Kwargs) -> None:
        expect_call(self._owner)

    def _expect_no_more(self, kwargs: Kwargs) -> None:
        expect_call(None)

    def _run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        named = by_name(self._base_names, args, kwargs)
        if torch.compiler.is_compiling() or self._has_run:  # the first call is opened for the report, whatever it is
            if is_static_step(named, self._switch):
                return self._step(original, named)
            if is_growing_step(named, self._parts):
                return self._follow(original, named)
        if self._identity and torch.compiler.is_compiling() and not is_pruned(named.get(CACHE)):
            return original(*args, **kwargs)
        return self._prune_in_python(original, *args, **kwargs)

    def _step(self, original: Callable[..., Any], kwargs: Kwargs) -> Any:
        """Run one token more in a static cache."""
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling:
            expect_call(None)
        layers: Any = kwargs[CACHE].layers
        if not is_static_pruned(layers[0]):
            return original(**kwargs)
        layers[0].state.open(is_text=True)
        try:
            return original(**kwargs) if is_compiling else or_take_back(layers, original, kwargs)
        finally:
            layers[0].state.close()

    def _follow(self, original: Callable[..., Any], kwargs: Kwargs) -> Any:
        """Run one token more in a growing cache."""
        expect_call(None)
        state = kwargs[CACHE].layers[0].state
        state.open(is_text=True)
        try:
            with without_call():
                return original(**kwargs)
        finally:
            state.close()

    def _prune(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            raise ValueError(
                "model must not be exported or traced into one graph while it is pruned: what is cut differs from "
                "call to call; leave the `with` block first, or compile with fullgraph=False"
            )
        given = by_name(self._base_names, args, kwargs)
        call = open_call(self._owner)
        try:
            self._open(call, given)
            output = original(**self._stacked(given))
        finally:
            close_call(call)
        self._finished(call)
        self._has_run = True
        return output

    def _stacked(self, given: Kwargs) -> Kwargs:
        """Return the arguments, clips that were encoded ahead in the form that the model takes."""
        outputs, video = given.get("mm_encoder_outputs") or {}, self._parts.video
        clips: Any = outputs.get("video")
        if video is None or not video.is_stacked or not isinstance(getattr(clips, "pooler_output", None), list):
            return given
        whole = {**clips, "pooler_output": stacked(clips.pooler_output, at_once=True)}
        return {**given, "mm_encoder_outputs": {**outputs, "video": type(clips)(**whole)}}

    def _open(self, call: Call, given: Kwargs) -> None:
        check_tokens(given)
        cache = given.get(CACHE)
        past = call.past = cached_length(cache)
        call.is_fresh = cache is None or (isinstance(cache, DynamicCache | StaticCache) and past == 0)
        sources = self._sources(given)
        for kind, source in sources.items():
            output = (given.get("mm_encoder_outputs") or {}).get(kind)
            source.encoded = None if output is None else encoded_of(output)
        if self._identity:
            check_continuing(given, self._parts, past, brings_images=bool(sources))
        else:
            generation = active_generation(self._owner)
            is_draft = generation is not None and generation.is_draft
            check_opening(given, sources, self._parts, call, past=past, is_draft=is_draft)
        if sources:
            call.sources, call.placeholders = sources, either([source.where for source in sources.values()])
            if not self._identity:
                where = {kind: source.where for kind, source in sources.items()}
                # Positions of several axes are nobody's to count.
                read = {**given, "position_ids": None} if self._parts.keeps_positions else given
                grids = {} if self._parts.squares is None else readable_grids(given)
                call.seen = read_prompt(where, read, self._parts.token_ids, grids)
                check_clips(call)
                if call.seen is not None and not is_draft:
                    check_absent(call.seen.others, self._parts.token_ids, past)

    def _sources(self, given: Kwargs) -> dict[str, Source]:
        """Return the images and clips of a call, by kind."""
        found, outputs = {}, given.get("mm_encoder_outputs") or {}
        for kind, token_id in self._parts.token_ids.items():
            pixels = given.get(PIXELS[kind])
            if outputs.get(kind) is not None or (pixels is not None and len(pixels) > 0):
                found[kind] = Source(layout.placeholders(given, self._parts, token_id))
        return found
