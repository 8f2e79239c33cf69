"""`prune`: the one call around an unmodified model."""

from __future__ import annotations

from itertools import count
from types import TracebackType
from typing import Self
from weakref import WeakSet

from torch import nn
from torch.utils.hooks import RemovableHandle

from vitcop_core import Method
from vitcop_llava.families import locate
from vitcop_llava.kernels import load_kernels
from vitcop_llava.language_hooks import LanguageHooks
from vitcop_llava.report import Report, Survivors, survivors_of
from vitcop_llava.state import Call, abandon
from vitcop_llava.vision_hooks import VisionHooks

_owners = count(1)
_pruned: WeakSet[nn.Module] = WeakSet()


class Pruner:
    """A model under pruning: a handle with ``remove()``, and a context manager that calls it.

    Made by `prune`. The hooks hold the method alone; what a forward pass learns belongs to that pass and its cache.
    """

    def __init__(self, model: nn.Module, method: Method) -> None:
        parts = locate(model)
        if parts.base in _pruned:
            raise ValueError("model: is pruned already; remove() that pruner, or leave its `with` block, first")
        self._method, self._parts = method, parts
        self._owner = next(_owners)
        self._last: Call | None = None
        self._handles: list[RemovableHandle] = []
        language = LanguageHooks(parts, method, self._owner, finished=self._finish)
        vision = VisionHooks(parts, method, self._owner)
        try:
            self._handles.extend(language.attach())
            if not language.identity:
                self._handles.extend(vision.attach())
        except BaseException:
            self.remove()
            raise
        _pruned.add(parts.base)

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
            ValueError: No image has been pruned yet, or there is no such row.
        """
        return survivors_of(self._last, row)

    def remove(self) -> None:
        """Takes every hook off the model. Calling it again does nothing."""
        if self._handles:
            _pruned.discard(self._parts.base)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        abandon(self._owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _finish(self, call: Call) -> None:
        # Decoding and further turns in text follow a prefill and say nothing new of it.
        if call.placeholders is not None or call.is_fresh or self._last is None:
            self._last = call


def prune(model: nn.Module, method: Method) -> Pruner:
    """Prunes the visual tokens of ``model`` while it runs, until the returned handle is removed.

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
        model: A ``LlavaForConditionalGeneration`` with a CLIP tower and a Llama, Mistral or Qwen2 language model.
        method: The settings, for example ``ViTCoP(retained_tokens=64)``.

    Returns:
        The pruner, already at work.

    Raises:
        TypeError: The model is of another family, or ``method`` is none.
        ValueError: A part of the model cannot be pruned, it is pruned already, or the budget does not fit it. The model
            is then as it was.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method: must be a method such as ViTCoP(retained_tokens=64), got {type(method).__name__}")
    load_kernels()
    return Pruner(model, method)
