"""What has to be right as a call begins, before anything of it is encoded or cut."""

from __future__ import annotations

from typing import Any, cast

from transformers.cache_utils import Cache

from vitcop_llava.compat import CACHE
from vitcop_llava.families import Parts
from vitcop_llava.families.clips import check_frames
from vitcop_llava.hooks.arguments import tokens_of
from vitcop_llava.hooks.checks import (
    check_call,
    check_encoded,
    check_mask,
    check_positions,
    check_text_only,
    check_unchanged,
    check_window,
)
from vitcop_llava.hooks.counting import either
from vitcop_llava.hooks.layout import find_origin, placeholders
from vitcop_llava.hooks.state import Call, Source
from vitcop_llava.sequence.cache import check_cache, check_cuts, check_follows, is_forked, is_pruned
from vitcop_llava.sequence.foreign import check_foreign
from vitcop_llava.weights.fingerprint import check_marked

Given = dict[str, Any]


def check_opening(
    given: Given, sources: dict[str, Source], parts: Parts, call: Call, *, past: int, is_draft: bool
) -> None:
    """Raise for a call that cannot be pruned, and settle which encoded images it has.

    Args:
        given: The arguments of the base module's forward.
        sources: Its images and clips; those that were encoded ahead get their origin.
        parts: The model's.
        call: The call.
        past: Tokens in the cache.
        is_draft: Whether it drafts for assisted decoding: transformers hands it no images, and takes its placeholders
            for text.

    Raises:
        ValueError: Something does not fit; the message names the argument.
    """
    cache = given.get(CACHE)
    check_marked(cache, parts.base)
    length = tokens_of(given).shape[1]
    if past:
        check_foreign(cache)
    if sources:
        check_cache(cache)
        check_unchanged(parts)
        for kind, source in sources.items():
            _check_ahead(given, kind, source, call)
        check_call(given, parts)
    absent = {kind: token for kind, token in parts.token_ids.items() if kind not in sources}
    if not is_draft and given.get("input_ids") is not None:
        if is_forked(cache) and not sources:
            check_follows(either([placeholders(given, parts, token) for token in absent.values()]))
        elif not sources and (call.is_fresh or length - call.continuation > 1):  # else they are read with the prompt
            check_text_only(given["input_ids"], absent, past)
    if sources or is_pruned(cache):
        check_mask(given, past)
        check_positions(given, has_axes=parts.keeps_positions)
        check_window(past + length, parts)


def check_continuing(given: Given, parts: Parts, past: int, *, brings_images: bool) -> None:
    """Raise for a call without cuts of its own that cannot go on with a cache which has been cut.

    Raises:
        ValueError: The mask or the window does not fit, or images join tokens that were cut in some layers.
    """
    cache = given.get(CACHE)
    check_marked(cache, parts.base)
    if past:
        check_foreign(cache)
    if not is_pruned(cache):
        return
    check_mask(given, past)
    check_positions(given, has_axes=parts.keeps_positions)
    check_window(past + tokens_of(given).shape[1], parts)
    if brings_images:
        check_cuts(cast(Cache, cache), cut_layers=())


def _check_ahead(given: Given, kind: str, source: Source, call: Call) -> None:
    output = (given.get("mm_encoder_outputs") or {}).get(kind)
    if output is None:
        return
    source.encoded = check_encoded(source.encoded, call.owner)
    find_origin(source, output.pooler_output)


def check_clips(call: Call) -> None:
    """Raise unless clips that were encoded ahead of a call are those that its prompt has placeholders for.

    Raises:
        ValueError: They are not.
    """
    source = call.sources.get("video")
    if source is None or source.encoded is None:
        return
    clips = [image.tiling for image in source.images] * source.repeats
    check_frames(clips, source.where, None if call.seen is None else call.seen.count("video"))
