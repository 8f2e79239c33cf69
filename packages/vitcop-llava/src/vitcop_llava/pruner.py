"""`prune`: the one call around an unmodified model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from types import TracebackType
from typing import NamedTuple, Self
from weakref import WeakKeyDictionary, ref

from torch import nn

from vitcop_core import Method
from vitcop_core.shown import kind_of, shown, shown_settings
from vitcop_llava.families import Parts, locate, unwrapped
from vitcop_llava.families.decoder import check_scoring
from vitcop_llava.hooks.calls import CallHooks
from vitcop_llava.hooks.capture import DecoderCapture, TowerCapture
from vitcop_llava.hooks.checks import check_tower
from vitcop_llava.hooks.deepstack import DeepstackHooks
from vitcop_llava.hooks.graphs import Graphs
from vitcop_llava.hooks.language import LanguageHooks
from vitcop_llava.hooks.mixing import MixedStage
from vitcop_llava.hooks.patching import CleanCopies, Removable, forget_compiled, is_compiled
from vitcop_llava.hooks.planning import Planner
from vitcop_llava.hooks.squares import SquareHooks
from vitcop_llava.hooks.state import Call
from vitcop_llava.hooks.step_capture import StepCapture
from vitcop_llava.hooks.tower import TowerHooks
from vitcop_llava.hooks.vision import FeatureHooks, VisionHooks
from vitcop_llava.kernels import load_kernels
from vitcop_llava.report import Report, Survivors, survivors_of


class Settings(NamedTuple):
    """What a model is pruned with."""

    method: Method
    keep_newline: bool = False


_owners = count(1)
_pruned: WeakKeyDictionary[nn.Module, tuple[Settings, int, ref[Pruner]]] = WeakKeyDictionary()
_heard: ContextVar[list[Call] | None] = ContextVar("vitcop_heard", default=None)


class Pruner:
    """A model under pruning: a handle with ``remove()``, and a context manager that calls it.

    Made by `prune`. The hooks hold the method alone; what a forward pass learns belongs to that pass and its cache.
    """

    def __init__(self, model: nn.Module, method: Method, *, keep_newline: bool = False, capture: bool = False) -> None:
        model = unwrapped(model)
        parts = locate(model)
        if keep_newline and parts.anyres is None:
            raise ValueError(
                f"keep_newline must be False for a model without newline tokens, got True for a {type(model).__name__}"
            )
        if parts.base in _pruned:
            raise ValueError(
                "model must not be pruned already, got one that is; leave its `with` block first, or call "
                "vitcop_llava.pruner_of(model).remove()"
            )
        self._method, self._parts, self._kind = method, parts, type(model).__name__
        self._owner = next(_owners)
        self._last: Call | None = None
        self._handles: list[Removable] = []
        self._captures, self._is_entered = capture, False
        self._tokens: StepCapture | None = None
        planner = Planner(method, parts.shape.num_layers, keep_newlines=keep_newline)
        reads_images = type(method).cut_vision is not Method.cut_vision
        reads_tower = reads_images and not method.needs_projected
        identity = _keeps_all(planner, parts, method if reads_tower else None)
        cuts_tower = reads_tower and not identity
        if not identity and method.cuts_depend_on_question:
            check_scoring(parts.decoder_layers[0].self_attn)
        try:
            self._attach(model, planner, identity=identity, cuts_tower=cuts_tower)
        except BaseException:
            self.remove()
            raise
        # Its hooks keep it alive, and the model them: this must not.
        _pruned[parts.base] = Settings(method, keep_newline), self._owner, ref(self)

    def _attach(self, model: nn.Module, planner: Planner, *, identity: bool, cuts_tower: bool) -> None:
        parts, method, owner = self._parts, self._method, self._owner
        segments = lower = None
        graphs = Graphs()
        if self._captures and not identity:
            segments, lower = DecoderCapture(parts, owner, graphs), TowerCapture(parts, owner, graphs)
        language = LanguageHooks(parts, method, planner, owner, segments, identity=identity)
        vision = (VisionHooks if parts.squares is None else SquareHooks)(parts, method, planner, owner)
        calls = CallHooks(model, parts, owner, self._finish, language.switch, identity=identity)
        self._handles.extend(calls.attach())
        if segments is not None and model is not parts.base:
            self._tokens = StepCapture(model, parts, segments, graphs, language.switch)
            self._handles.extend(self._tokens.attach([*self._handles]))
        tower = TowerHooks(parts, owner)
        features = FeatureHooks(
            parts,
            planner,
            owner,
            tower,
            lower,
            cuts_tower=cuts_tower,
            identity=identity,
            chooser=method if method.needs_projected and not identity else None,
            decide=MixedStage(parts, method).decide if parts.mixes_tokens else None,
        )
        self._handles.extend(features.attach())
        self._handles.extend(language.attach())
        if not identity:
            self._handles.extend(DeepstackHooks(parts, owner).attach())
        modules = [model, parts.base, *language.modules]
        if cuts_tower:
            self._handles.extend(vision.attach())
            modules += vision.modules
        if not identity:
            self._handles.extend(tower.attach())
            modules += tower.modules
        if lower is not None:
            self._handles.extend(lower.attach())
            modules += lower.modules
        if not identity and is_compiled(parts.base):
            self._handles.extend(forget_compiled(modules[2:]))
        self._handles.append(CleanCopies(modules, self._handles))

    def __repr__(self) -> str:
        state = "on" if self._handles else "removed"
        return f"<Pruner of a {self._kind}, {state}: {shown_settings(self._method)}>"

    @property
    def method(self) -> Method:
        """The settings that the model is pruned with."""
        return self._method

    @property
    def report(self) -> Report:
        """What the most recent prefill kept, and what that saved."""
        return Report.of(self._last, self._method, self._parts)

    @property
    def uncaptured(self) -> str | None:
        """Why some part of the most recent prefill ran as it is, and was not replayed; None where all was. On a device
        without graphs, where nothing is replayed, None as well.

        See ``capture`` of `prune`.
        """
        if not self._captures:
            return "prune was not asked to capture; give it capture=True"
        if self._last is None or self._last.outcome is None:
            return "nothing was pruned"
        towers = (each.encoded.unreplayed for each in self._last.sources.values() if each.encoded is not None)
        return self._last.outcome.unreplayed or next((obstacle for obstacle in towers if obstacle), None)

    @property
    def uncaptured_token(self) -> str | None:
        """Why the most recent token in a static cache ran as it is, and was not replayed; None where it was. On a
        device without graphs, where nothing is replayed, None as well.

        See ``capture`` of `prune`.
        """
        if not self._captures:
            return "prune was not asked to capture; give it capture=True"
        return "nothing is pruned, or the model has no head" if self._tokens is None else self._tokens.obstacle

    def survivors(self, row: int = 0) -> Survivors:
        """Return which patches of the most recent prefill's ``row`` survived each cut (read back from the device).

        Raises:
            TypeError: ``row`` is no integer.
            ValueError: No image has been pruned yet, or there is no such row.
        """
        return survivors_of(self._last, row, self._method)

    def remove(self) -> None:
        """Take every hook off the model. Calling it again does nothing."""
        if self._handles:
            _pruned.pop(self._parts.base, None)
        for handle in reversed(self._handles):
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        if not self._handles or self._is_entered:
            what = "is entered already" if self._handles else "was removed"
            raise ValueError(
                f"pruner must be entered once, while it is on its model, got one that {what}; call prune again"
            )
        self._is_entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_entered = False
        self.remove()

    def _finish(self, call: Call) -> None:
        heard = _heard.get()
        if heard is not None:
            heard.append(call)
        # Decoding and further turns in text follow a prefill and say nothing new of it.
        if call.placeholders is not None or call.is_fresh or self._last is None:
            self._last = call


def _keeps_all(planner: Planner, parts: Parts, reader: Method | None) -> bool:
    """Return whether the budget keeps every token.

    Args:
        planner: Of the method.
        parts: The model's.
        reader: The method, where it looks at the tower.
    """
    try:
        identity, error = planner.keeps_all(parts), None
    except ValueError as found:
        identity, error = False, found
    if reader is not None and not identity:
        check_tower(parts, reader)
    if error is not None:
        raise error
    return identity


def active_settings(base: nn.Module) -> Settings | None:
    """Return what the model with this base module is being pruned with; None while it is not."""
    found = _pruned.get(base)
    return None if found is None else found[0]


def settings_for(parts: Parts, method: Method | None) -> tuple[Settings, bool]:
    """Return what to prune with for one piece of work, and whether the model is being pruned with it.

    Args:
        parts: The model's.
        method: None for what the model is being pruned with.

    Raises:
        TypeError: ``method`` is none.
        ValueError: It is missing, or another than the model is being pruned with.
    """
    active = active_settings(parts.base)
    if method is not None:
        _check_method(method)
    if active is not None:
        if method not in (None, active.method):
            raise ValueError(
                f"method must be what the model is being pruned with, {shown_settings(active.method)}, got "
                f"{shown_settings(method)}"
            )
        return active, True
    if method is None:
        raise ValueError("method must be given where the model is not being pruned, got None")
    return Settings(method), False


def _check_method(method: object) -> None:
    if not isinstance(method, Method):
        raise TypeError(f"method must be a method such as ViTCoP(retained_tokens=64), got {kind_of(method)}")


def active_owner(base: nn.Module) -> int:
    """Return the number of the pruner that is at work on the model with this base module; 0 while there is none."""
    found = _pruned.get(base)
    return 0 if found is None else found[1]


def pruner_of(model: nn.Module) -> Pruner | None:
    """Return the pruner that is at work on ``model``; None while there is none.

    A model stays pruned when the handle that `prune` returned is lost. This finds it again.

    Raises:
        TypeError: The model is of a family that cannot be pruned.
    """
    found = _pruned.get(locate(model).base)
    return None if found is None else found[2]()


@contextmanager
def finished_calls() -> Iterator[list[Call]]:
    """Collect the calls that end inside the block, in this thread or task alone."""
    calls: list[Call] = []
    token = _heard.set(calls)
    try:
        yield calls
    finally:
        _heard.reset(token)


def prune(model: nn.Module, method: Method, *, keep_newline: bool = False, capture: bool = False) -> Pruner:
    """Prune the visual tokens of ``model`` while it runs, until the returned handle is removed.

    Everything else stays as it was: ``forward`` and ``generate`` take and give what they always did, in lengths of the
    caller's prompt. Use it as a context manager or keep the handle:

    >>> with vitcop_llava.prune(model, vitcop_llava.ViTCoP(retained_tokens=64)) as pruner:  # doctest: +SKIP
    ...     output = model.generate(**inputs)
    >>> print(pruner.report)  # doctest: +SKIP

    Logits, labels and hidden states line up with the caller's ``input_ids``. Hidden states of dropped placeholders are
    zero, except at the last placeholder of an image, where that of the last surviving token before it stands: it is the
    one that predicts the text after the image. Attention maps, where asked for, have each layer's physical size.

    Images have to come as ``pixel_values``; features that are computed ahead and handed in as ``inputs_embeds`` are
    taken for text.

    Args:
        model: A ``ForConditionalGeneration`` of transformers: ``Llava``, ``LlavaNext``, ``LlavaOnevision``,
            ``VipLlava``, or with vitcop-video installed ``LlavaNextVideo``, with a CLIP or a SigLIP tower and a
            language model such as Llama, Mistral, Qwen2, Qwen3 or Gemma; or a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.
        method: The settings, for example ``ViTCoP(retained_tokens=64)``.
        keep_newline: LLaVA-NeXT ends every line of an image's tiles with a newline token. False drops them with the
            patches; True keeps those of lines that have patches, through all cuts and beside the budget.
        capture: Replay prefills as CUDA graphs, from the second time on that a prompt has the same shape, and in a
            static cache the tokens after them. A GPU waits for the host in a prefill of one short prompt, and in every
            token; replayed, it does not. Whatever cannot be replayed runs as it is, with the same result: padding and
            rows that are not alike in a prefill, gradients, hooks, parts that are not transformers' own.
            :attr:`Pruner.uncaptured` and :attr:`Pruner.uncaptured_token` have the reason. Up to 32 graphs of prefills
            keep memory of their own, and one of a token for each cache. On a CPU it saves nothing.

    Returns:
        The pruner, already at work.

    Raises:
        TypeError: The model is of another family, ``method`` is none, or ``keep_newline`` or ``capture`` is no bool.
        ValueError: A part of the model cannot be pruned, it is pruned already, the budget does not fit it, or it has
            no newline tokens to keep. The model is then as it was.
    """
    _check_method(method)
    if not isinstance(keep_newline, bool):
        raise TypeError(f"keep_newline must be True or False, got {shown(keep_newline)}")
    if not isinstance(capture, bool):
        raise TypeError(f"capture must be True or False, got {shown(capture)}")
    load_kernels()
    return Pruner(model, method, keep_newline=keep_newline, capture=capture)
