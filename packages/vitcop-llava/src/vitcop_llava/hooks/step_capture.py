"""Tokens that are replayed: calls of one token after a static cache that was pruned.

Where a token goes in the cache, and what it attends to, follows from counters on the device. So a token is always the
same work on the same memory, and needs the host no more than once: the first one runs as it is, the next is recorded
for that cache, and all later ones are replayed. What a recording depends on is compared before its launch where the
device would read memory that is gone, and after it, while the device works, where another result would come out. Then
the token is taken back, and runs as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import CompileConfig
from transformers.cache_utils import StaticCache
from transformers.utils.generic import ModelOutput

from vitcop_llava.compat import CACHE
from vitcop_llava.families import Parts
from vitcop_llava.hooks.arguments import by_name, names_of
from vitcop_llava.hooks.capture import OUTPUTS, DecoderCapture
from vitcop_llava.hooks.checks import replaced_part
from vitcop_llava.hooks.graphs import NEW, Graph, Graphs, place_of, shapes_of
from vitcop_llava.hooks.patching import HookSwitch, Removable, Replacement
from vitcop_llava.hooks.stepping import count_back, is_static_step, of_one_token
from vitcop_llava.hooks.unchanged import is_data, obstacle_here, obstacle_of, weights_of, words_of
from vitcop_llava.sequence.described import CacheState
from vitcop_llava.sequence.static import PrunedStaticLayer, is_static_pruned

Kwargs = dict[str, Any]
Run = Callable[..., Any]

COMPILED_CALL = "get_compiled_call"
"""The method by which `generate` gets the compiled form of a model, where it decodes with one."""

GRAPHS_ON = frozenset({"cuda"})
"""Kinds of devices that have something to record. Elsewhere a token runs as it is, after the same questions."""

_PATIENCE = 3
"""How many recordings of a cache may be good for nothing until its tokens run as they are: recording takes longer."""

_MODES = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Modes of `torch.compile` that replay graphs of their own, and what else they do without these."""

AS_IT_IS = "as it is"
"""How a token runs that nobody compiled."""


@dataclass(frozen=True)
class Form:
    """What the model gives for a token, but for the values of tensors and the cache.

    Attributes:
        kind: The class of it.
        names: Its tensors, in the order in which the graph gives them.
        held: What is in it because the base module holds it, and not for the token's sake.
        rest: The other values.
    """

    kind: type
    names: tuple[str, ...]
    held: tuple[str, ...]
    rest: Kwargs


@dataclass(eq=False)
class Recording:
    """One token, recorded for one cache.

    Attributes:
        graph: It.
        weights: What it reads of the model, as long as that has it.
        memory: Where these lie, and the cache's buffers, with what the host knows of it.
        state: What else it depends on.
        form: Of what the model gives.
        counted: Slots that the host counts for a token.
    """

    graph: Graph
    weights: list[ref[Tensor]]
    memory: list[int]
    state: Hashable
    form: Form
    counted: int


@dataclass(eq=False)
class History:
    """What is known of the tokens of one cache. A call of another form begins anew.

    Attributes:
        key: The form of the last call.
        ran: Tokens in a row that ran as they are.
        spoilt: Recordings that were good for nothing, because something else had changed.
        is_running: Whether a token is at work: compiled code may call the model's own forward, where it does not trace
            it.
        recording: One of that form, once there is one.
        obstacle: Why there can be none of that form.
    """

    key: tuple[Hashable, ...] = ()
    ran: int = 0
    spoilt: int = 0
    is_running: bool = False
    recording: Recording | None = None
    obstacle: str | None = None


class CannotReplayError(Exception):
    """A token cannot be replayed; the message says why."""


class HinderedError(CannotReplayError):
    """No token can be, for something that is on the model, or what is asked of it."""


class StepCapture:
    """Replays tokens of one model. What it holds of a cache goes with that cache.

    Args:
        model: The model, with its head.
        parts: Its parts.
        decoder: What replays the layers in a prefill, and knows what is on them.
        graphs: Where recordings share their memory.
        switch: The hooks on the layers.

    Attributes:
        obstacle: Why the last token was not replayed; None where it was, or would have been on a GPU.
    """

    def __init__(self, model: Any, parts: Parts, decoder: DecoderCapture, graphs: Graphs, switch: HookSwitch) -> None:
        self._model, self._parts, self._decoder = model, parts, decoder
        self._graphs, self._switch = graphs, switch
        self._names = names_of(model.forward)
        # What the pruner puts something on, beside the layers.
        self._hooked = (model, parts.base, parts.language_model)
        self._own: dict[nn.Module, Replacement] = {}
        self._histories: WeakKeyDictionary[CacheState, History] = WeakKeyDictionary()
        self.obstacle: str | None = "no token has followed in a static cache"

    def attach(self, handles: Iterable[Removable]) -> Iterator[Removable]:
        """Replace the model's forward, and how `generate` gets it compiled, yielding what undoes it.

        Args:
            handles: What is on the model already.
        """
        forward = Replacement(self._model, "forward", self._run)
        for each in (*handles, forward):
            if isinstance(each, Replacement):
                self._own |= {module: each for module in self._hooked if each.replaces(module, "forward")}
        yield forward
        if hasattr(self._model, COMPILED_CALL):
            yield Replacement(self._model, COMPILED_CALL, self._compiled)
        yield self

    def remove(self) -> None:
        """Let go of all recordings."""
        self._histories.clear()
        self._graphs.clear()

    def _run(self, original: Run, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        given = by_name(self._names, args, kwargs)
        if not self._is_step(given) or self._history_of(given).is_running:
            return original(**given)
        return self._replay_or_run((AS_IT_IS,), original, given)

    def _compiled(self, original: Callable[[Any], Run], config: Any = None) -> Run:
        """Return what `generate` decodes with: compiled code, of which a token is recorded as of any other.

        Code that would replay graphs of its own is compiled without them where ours hold it. What compiled code asks
        before each token, whether it is still good for it, is then asked no more.
        """
        chosen = config or getattr(self._model.generation_config, "compile_config", None) or CompileConfig()
        own = without_graphs(chosen) if self._model.device.type in GRAPHS_ON else chosen
        how, as_asked = ("compiled", repr(own.to_dict())), partial(_call, original, config)

        def run(*args: Any, **kwargs: Any) -> Any:
            given = by_name(self._names, args, kwargs)
            if not self._is_step(given):
                return as_asked(**given)
            return self._replay_or_run(how, partial(_call, original, own), given, hindered=as_asked)

        return run

    def _is_step(self, given: Kwargs) -> bool:
        return is_static_step(given, self._switch) and is_static_pruned(given[CACHE].layers[0])

    def _history_of(self, given: Kwargs) -> History:
        return self._histories.setdefault(given[CACHE].layers[0].state, History())

    def _replay_or_run(self, how: tuple[Hashable, ...], run: Run, given: Kwargs, hindered: Run | None = None) -> Any:
        """Replay a token, or run it; by ``hindered``, if that is given, where none can be replayed."""
        history = self._history_of(given)
        history.is_running = True
        try:
            try:
                output, self.obstacle = self._replayed(how, run, given, history), None
            except CannotReplayError as reason:
                if isinstance(reason, HinderedError) and history.recording is None:
                    run = hindered or run
                output, self.obstacle, history.recording = None, str(reason), None
            if output is not None:
                return output
            history.ran += 1
            return run(**given)
        finally:
            history.is_running = False

    def _replayed(self, how: tuple[Hashable, ...], run: Run, given: Kwargs, history: History) -> Any:
        """Return the output of a token that was replayed; None where there is nothing to record.

        Raises:
            CannotReplayError: It has to run as it is, this time at least.
        """
        given, cache, device = of_one_token(given), given[CACHE], self._model.device
        if obstacle := obstacle_here(device):
            raise HinderedError(obstacle)
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in given.items() if name not in tensors and name != CACHE}
        if not is_data(rest):
            raise CannotReplayError(f"the model is called with {', '.join(sorted(given))}")
        if any(each.device != device for each in tensors.values()):
            raise CannotReplayError("what it is called with is on several devices")
        if cache.layers[0].physical_length >= cache.layers[0].room:
            raise CannotReplayError("the cache is full")  # as it then says itself
        inputs = [*tensors.values()]
        modes = (torch.is_inference_mode_enabled(), *map(Tensor.is_inference, inputs))
        key = (*how, *tensors, shapes_of(inputs), repr(rest), place_of(device), modes)
        if key != history.key:
            history.key, history.ran, history.recording, history.obstacle = key, 0, None, None
        if history.obstacle is not None:
            raise HinderedError(history.obstacle)
        recording = history.recording
        if recording is None or recording.memory != _memory(recording.weights, cache):
            history.spoilt += recording is not None
            state, obstacle = self._now(given)
            if obstacle is not None:
                raise HinderedError(obstacle)
            # Libraries choose kernels, and code is compiled, in the first token; some code again in the second.
            if history.ran < (1 if how[0] == AS_IT_IS else 2):
                raise CannotReplayError(NEW)
            if history.spoilt >= _PATIENCE:
                raise CannotReplayError("the model or the cache changes from token to token")
            if device.type not in GRAPHS_ON:
                return None
            made = self._recorded(run, given, tensors, (key, state))
            if isinstance(made, str):
                history.obstacle = made
                raise HinderedError(made)
            recording = history.recording = made
        found = self._graphs.replay(recording.graph, inputs)
        state, obstacle = self._now(given)  # the device is at work by now
        if obstacle is not None or state != recording.state:
            count_back(cache.layers)
            history.spoilt += 1
            raise CannotReplayError(obstacle or "the model has changed")
        for layer in cache.layers:
            layer.physical_length += recording.counted
        form = recording.form
        values = dict(zip(form.names, found, strict=True))
        values |= {name: getattr(self._parts.base, name) for name in form.held}
        return form.kind(**values, **form.rest, **{CACHE: cache})

    def _recorded(
        self, run: Run, given: Kwargs, tensors: dict[str, Tensor], key: tuple[Hashable, Hashable]
    ) -> Recording | str:
        """Record a token, or return why it cannot be.

        Args:
            run: What runs it.
            given: All arguments.
            tensors: Those that differ from token to token.
            key: Their form, and what else it depends on.
        """
        cache = given[CACHE]
        layers, forms = _layers(cache), list[Form]()
        before = [layer.physical_length for layer in layers]

        def work(*inputs: Tensor) -> tuple[Tensor, ...]:
            output = run(**given | dict(zip(tensors, inputs, strict=True)))  # in the order that was compiled
            if not isinstance(output, ModelOutput) or output.get(CACHE) is not cache:
                raise RuntimeError(f"the model gives a {type(output).__name__} without the cache")
            held = tuple(name for name, value in output.items() if getattr(self._parts.base, name, None) is value)
            gives = {name: value for name, value in output.items() if name != CACHE and name not in held}
            found = {name: value for name, value in gives.items() if isinstance(value, Tensor)}
            others = {name: value for name, value in gives.items() if name not in found}
            if not is_data(others):
                raise RuntimeError(f"the model gives {', '.join(gives)}")
            forms.append(Form(type(output), tuple(found), held, others))
            return tuple(found.values())

        try:
            made = self._graphs.record(key, work, [*tensors.values()])
        finally:  # recording does nothing on the device
            counted = layers[0].physical_length - before[0]
            for layer, length in zip(layers, before, strict=True):
                layer.physical_length = length
        if isinstance(made, str):
            return made
        weights = [ref(each) for each in weights_of([*self._around(), *self._parts.decoder_layers])]
        return Recording(made, weights, _memory(weights, cache), key[1], forms[-1], counted)

    def _now(self, given: Mapping[str, Any]) -> tuple[Hashable, str | None]:
        """Return what the work of a token depends on at this moment, and what keeps it from being replayed."""
        if obstacle := obstacle_here(self._model.device):
            return None, obstacle
        if any(given.get(name) or getattr(self._parts.config, name, False) for name in OUTPUTS):
            return None, "hidden states or attention maps are asked for"
        if self._parts.keeps_positions and given.get("position_ids") is None:
            return None, "position_ids are missing: what the model counts from is its last prompt's"
        if name := replaced_part(self._parts):
            return None, f"the {name} was replaced"
        for module in self._hooked:
            if obstacle := obstacle_of(module, vars(module), self._own.get(module), hooks=None):
                return None, obstacle
        state, obstacle = self._decoder.state(self._around())
        kinds = tuple((id(type(module)), type(module).forward) for module in self._hooked)
        return (state, kinds, *words_of(self._model.config)), obstacle

    def _around(self) -> list[nn.Module]:
        """Return what runs in a token beside the layers."""
        outer = (each for each in self._model.children() if each is not self._parts.base)
        layers = {*self._parts.decoder_layers}
        inner = (each for each in self._parts.language_model.children() if layers.isdisjoint(each.children()))
        return [*outer, *inner]


def _call(compiled: Callable[[Any], Run], config: Any, **given: Any) -> Any:
    """Run a token compiled in one way; it is compiled as it is called."""
    return compiled(config)(**given)


def _layers(cache: StaticCache) -> list[PrunedStaticLayer]:
    """Return the layers of a static cache that was pruned."""
    return cast(list[PrunedStaticLayer], cache.layers)


def _memory(weights: Sequence[ref[Tensor]], cache: StaticCache) -> list[int]:
    """Return where these lie, and the buffers of a cache; with the numbers on the host that a token depends on."""
    found, pointers = list[int](), [held for each in weights if (held := each()) is not None]
    for layer in _layers(cache):
        assert layer.keys is not None  # it was filled
        assert layer.values is not None
        found += (layer.covered, layer.lost, layer.max_cache_len, layer.has_padding, layer.group)
        pointers += (layer.keys, layer.values, layer.cumulative_length)
        # `row_state` without a dictionary: the device waits for this in every token
        pointers += [each for each in (layer.columns, layer.entry_dropped, layer.shift) if isinstance(each, Tensor)]
    found += map(Tensor.data_ptr, pointers)
    return found


def without_graphs(config: Any) -> Any:
    """Return settings of `torch.compile` that record no graphs of their own, and are otherwise the same."""
    own = copy.copy(config)
    if own.options is not None:
        own.options = {**own.options, "triton.cudagraphs": False}
    else:
        own.mode = _MODES.get(own.mode, own.mode)
    return own
