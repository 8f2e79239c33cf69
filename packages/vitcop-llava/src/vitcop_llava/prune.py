"""`prune`: the one call around an unmodified model."""

from __future__ import annotations

from types import TracebackType
from typing import Self
from weakref import WeakSet

from torch import nn
from torch.utils.hooks import RemovableHandle
from vitcop_core import Method

from vitcop_llava.families import locate
from vitcop_llava.language_hooks import LanguageHooks
from vitcop_llava.report import Report, Survivors, survivors_of
from vitcop_llava.state import Call
from vitcop_llava.vision_hooks import VisionHooks

_pruned: WeakSet[nn.Module] = WeakSet()


class Pruner:
    """A model under pruning: a handle with ``remove()``, and a context manager that calls it.

    Made by `prune`. The hooks hold the method alone; what a forward pass learns belongs to that pass and its cache.
    """

    def __init__(self, model: nn.Module, method: Method) -> None:
        parts = locate(model)
        if model in _pruned:
            raise ValueError("model: is pruned already; remove() that pruner, or leave its `with` block, first")
        language = LanguageHooks(parts, method, owner=self, finished=self._finish)
        hooks = [language.attach()]
        if not language.identity:
            hooks.append(VisionHooks(parts, method, owner=self).attach())
        self._model, self._method, self._parts = model, method, parts
        self._last: Call | None = None
        self._handles: list[RemovableHandle] = [handle for hook in hooks for handle in hook]
        _pruned.add(model)

    @property
    def method(self) -> Method:
        """The settings that the model is pruned with."""
        return self._method

    @property
    def report(self) -> Report:
        """What the most recent prefill kept, and what that saved."""
        return Report.of(self._last, self._method, self._parts)

    def survivors(self, row: int = 0) -> Survivors:
        """Which patches of the most recent prefill's ``row`` survived each cut (read back from the device).

        Raises:
            ValueError: where no image has been pruned yet, or there is no such row.
        """
        return survivors_of(self._last, row)

    def remove(self) -> None:
        """Takes every hook off the model. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            _pruned.discard(self._model)
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _finish(self, call: Call) -> None:
        # Decoding and text-only turns follow a prefill and say nothing new of it.
        if call.placeholders is not None or self._last is None or self._last.placeholders is None:
            self._last = call


def prune(model: nn.Module, method: Method) -> Pruner:
    """Prunes the visual tokens of ``model`` while it runs, until the returned handle is removed.

    Everything else stays as it was: ``forward`` and ``generate`` take and give what they always did, in lengths of the
    caller's prompt. Use it as a context manager or keep the handle:

    >>> with vitcop_llava.prune(model, vitcop_llava.ViTCoP(retained_tokens=64)) as pruner:  # doctest: +SKIP
    ...     output = model.generate(**inputs)
    >>> print(pruner.report)  # doctest: +SKIP

    Args:
        model: a ``LlavaForConditionalGeneration`` with a CLIP tower and a Llama, Mistral or Qwen2 language model.
        method: the settings, for example ``ViTCoP(retained_tokens=64)``.

    Returns:
        The pruner, already at work.

    Raises:
        TypeError: for a model of another family, or a method that is none.
        ValueError: for a model whose parts cannot be pruned, one that is pruned already, or a budget that does not fit
            the model. The model is then as it was.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method: must be a vitcop method such as ViTCoP(retained_tokens=64), got {type(method).__name__}")
    return Pruner(model, method)
