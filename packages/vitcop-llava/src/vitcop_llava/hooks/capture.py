"""Runs of layers that are replayed: the decoder layers between two cuts, and the vision tower below the scored layer.

A plan fixes how long every segment is. So a segment of a prompt of known shape is always the same work, and needs the
host no more than once: the first layer of a segment runs all of it, and the others hand on what they are given. It is
replayed only where nobody can tell the difference. Whatever else a layer may be given, or have been changed into, runs
as it is, and the reason can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vitcop_core import Method, Plan
from vitcop_llava.compat import CACHE
from vitcop_llava.families import Parts
from vitcop_llava.hooks.active import active_call, replay_no_more, replaying
from vitcop_llava.hooks.graphs import Graphs
from vitcop_llava.hooks.patching import Removable, Replacement
from vitcop_llava.hooks.runs import Group, Prefill, Replay
from vitcop_llava.hooks.unchanged import is_data, obstacle_here, state_of

OUTPUTS = ("output_hidden_states", "output_attentions")
"""Arguments that ask for what a recording does not give."""

_KNOWN = {"attention_mask", "position_ids", CACHE, "use_cache", "position_embeddings"}


class _Tap(Cache):
    """Stands in for a cache, and keeps the keys and values of each layer."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.held: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.held += [key_states, value_states]
        return key_states, value_states


class DecoderCapture:
    """Replays the segments of prefills. Holds no state of any call."""

    def __init__(self, parts: Parts, owner: int, graphs: Graphs) -> None:
        self._parts, self._owner, self._graphs = parts, owner, graphs
        self._own: dict[nn.Module, Replacement] = {}

    @property
    def replacements(self) -> list[Callable[[], Removable]]:
        """What makes the replacement of each layer's forward."""
        return [partial(self._replace, index) for index in range(len(self._parts.decoder_layers))]

    def begin(
        self, plans: Sequence[Plan | None], method: Method, given: Mapping[str, Any], *, is_compiled: bool
    ) -> Replay:
        """Return what a prefill has to know.

        Args:
            plans: Of its rows.
            method: Their method.
            given: What the language model is called with.
            is_compiled: Whether layers run as compiled code.
        """
        if is_compiled:
            return Replay(is_off=True, obstacle="the layers are compiled")
        if any(given.get(name) or getattr(self._parts.config, name, False) for name in OUTPUTS):
            return Replay(is_off=True, obstacle="hidden states or attention maps are asked for")
        cuts = (cut for plan in plans if plan is not None for cut in plan.decoder)
        return Replay(frozenset(cut.layer - 1 for cut in cuts if method.needs_attention(cut)))

    def state(self, more: Sequence[nn.Module]) -> tuple[Hashable, str | None]:
        """Return what the work of all layers, and of ``more`` modules, depends on; see `state_of`."""
        return state_of(self._parts.config, [*more, *self._parts.decoder_layers], self._own, hooks=1)

    def _replace(self, index: int) -> Removable:
        layer = self._parts.decoder_layers[index]
        self._own[layer] = Replacement(layer, "forward", partial(self._run_or_pass, index))
        return self._own[layer]

    def _run_or_pass(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # steps of decoding: the layers' hooks stay on for a static cache
            return original(*args, **kwargs)
        call = active_call(self._owner)
        run = None if call is None else call.run
        if not isinstance(run, Prefill) or run.replay is None or run.replay.is_off:
            return original(*args, **kwargs)
        group = run.replay.group
        if group is None or not group.first <= index < group.stop:
            found = self._replayed(index, run, run.replay, args, kwargs)
            if isinstance(found, str):
                run.replay.obstacle = run.replay.obstacle or found
                return original(*args, **kwargs)
            group, args = found
            run.replay.group = group
        number = 2 * (index - group.first)
        kwargs[CACHE].update(group.held[number], group.held[number + 1], index)
        return args[0]

    def _replayed(
        self, index: int, run: Prefill, replay: Replay, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Group, tuple[Any, ...]] | str:
        """Return the layers from ``index`` on, as far as they go together, and their output; or why not."""
        ends = (*run.cut_layers, *range(1, self._parts.deepstack + 1), len(self._parts.decoder_layers))
        stop = min(end for end in ends if end > index)
        if stop - 1 in replay.alone:
            stop -= 1
        if stop <= index:
            return ""  # by itself, as it has to be: nothing to tell
        hidden = args[0]
        given = {name: value for name, value in kwargs.items() if value is not None and value is not False}
        if obstacle := obstacle_here(hidden.device) or self._obstacle(run, given, index, args):
            return obstacle
        state, obstacle = state_of(self._parts.config, self._parts.decoder_layers[index:stop], self._own, hooks=1)
        if obstacle:
            return obstacle
        key = (index, stop, state)
        found = self._graphs.run(key, partial(self._work, index, stop), (hidden, *given["position_embeddings"]))
        if isinstance(found, str):
            return found
        return Group(index, stop, found[1]), (found[0],)

    def _obstacle(self, run: Prefill, given: Mapping[str, Any], index: int, args: tuple[Any, ...]) -> str | None:
        if not run.layers or given.get(CACHE) is None:
            return "there is no cache"
        if run.past or run.layers[index].physical_length:
            return "it goes on from a cache"
        if "attention_mask" in given or self._parts.config._attn_implementation != "sdpa":
            return "a mask is needed: padding, rows that are not alike, or another attention than SDPA"
        if len(args) > 1 or "position_embeddings" not in given or not _KNOWN.issuperset(given):
            return f"the layers are called with {', '.join(sorted(given))}"
        return None

    def _work(self, first: int, stop: int, hidden: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
        tap = _Tap()
        given = {"position_embeddings": (cosines, sines), CACHE: tap, "use_cache": True}
        for layer in self._parts.decoder_layers[first:stop]:
            hidden = self._own[layer].original(hidden, attention_mask=None, **given)
        return hidden, torch.stack(tap.held)


class TowerCapture:
    """Replays the vision tower up to the layer below the selected feature's. Holds no state of any call."""

    def __init__(self, parts: Parts, owner: int, graphs: Graphs) -> None:
        self._parts, self._owner, self._graphs = parts, owner, graphs
        self._own: dict[nn.Module, Replacement] = {}
        choice: Any = getattr(parts.base.config, "vision_feature_layer", None)
        states = len(parts.tower_layers) + 1
        is_one = isinstance(choice, int) and -states <= choice < states
        self._choice, self._stop = choice, choice % states - 1 if is_one else 0

    @property
    def modules(self) -> list[nn.Module]:
        """The layers that may be replayed."""
        return [*self._parts.tower_layers[: max(self._stop, 0)]]

    def obstacle(self, given: Mapping[str, Any], top: int | None) -> str | None:
        """Return what keeps the tower from being replayed in a call of the encoder, or None: it must read the feature
        that the configuration names, and nothing else.

        Args:
            given: The arguments of ``get_image_features`` or ``get_video_features``.
            top: See `TowerHooks.last_wanted`.
        """
        if self._stop <= 0:
            return f"the vision tower of a {type(self._parts.base).__name__} is never recorded"
        choice = given.get("vision_feature_layer")
        if top is None or choice not in (None, self._choice):
            return "somebody sees more of the vision tower than the selected feature"
        return None

    def attach(self) -> list[Removable]:
        """Replace the forward of these layers, giving what undoes it."""
        for number, layer in enumerate(self.modules):
            self._own[layer] = Replacement(layer, "forward", partial(self._run_or_pass, number))
        return [*self._own.values()]

    def _run_or_pass(self, number: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or (encoded := replaying(self._owner)) is None:
            return original(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if number == 0:
            found = self._replayed(hidden, args, kwargs)
            if isinstance(found, str):
                encoded.unreplayed = found
                replay_no_more()
                return original(*args, **kwargs)
            hidden = found
        if number == self._stop - 1:
            replay_no_more()
        return hidden

    def _replayed(self, hidden: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | str:
        given = {name: value for name, value in kwargs.items() if value is not None and name != "hidden_states"}
        if obstacle := obstacle_here(hidden.device):
            return obstacle
        if any(value is not None for value in args[1:]) or not is_data(given):
            return f"the tower's layers are called with {', '.join(sorted(given)) or 'a mask'}"
        state, obstacle = state_of(self._parts.vision_tower.config, self.modules, self._own, hooks=0)
        if obstacle:
            return obstacle
        key = ("tower", state, repr(given))
        found = self._graphs.run(key, partial(self._work, given), (hidden,))
        return found if isinstance(found, str) else found[0]

    def _work(self, given: Mapping[str, Any], hidden: Tensor) -> tuple[Tensor, ...]:
        for layer in self.modules:
            hidden = self._own[layer].original(hidden, None, **given)
        return (hidden,)
