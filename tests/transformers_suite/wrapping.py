"""Prunes every model of the supported families where it is constructed, and notes what became of each."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from typing import Any
from weakref import ref

import transformers
from torch import nn

from vitcop_core import Method
from vitcop_llava import Pruner, prune

FAMILIES = ("Llava", "LlavaNext", "LlavaNextVideo")
HEADS: dict[Any, Any] = {
    getattr(transformers, f"{name}Model"): getattr(transformers, f"{name}ForConditionalGeneration") for name in FAMILIES
}
"""From the class of a model without its head to the one with it."""
CLASSES = (*HEADS, *HEADS.values())


class Wrapper:
    """Patches the classes, so that a model is pruned from its construction until `release`.

    Attributes:
        wrapped: How many models were pruned, by class.
        left_alone: How many were not, by class and reason.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._pruned: list[tuple[ref[nn.Module], ref[Pruner]]] = []  # weak: some tests wait for a model to go
        self._depth = 0
        self.wrapped: Counter[str] = Counter()
        self.left_alone: Counter[str] = Counter()

    def install(self) -> None:
        """Patches constructors, copies and `from_pretrained`, for the rest of this process."""
        for kind in CLASSES:
            kind.__init__ = self._outermost(kind.__init__, lambda args, result: args[0])
            kind.__deepcopy__ = self._outermost(deepcopy_module, lambda args, result: result)
        # A loaded model is pruned when it is whole, as a user would, and not where its class is constructed.
        loader: Any = transformers.PreTrainedModel
        loader.from_pretrained = classmethod(
            self._outermost(loader.from_pretrained.__func__, lambda args, result: result)
        )

    def release(self) -> list[str]:
        """Ends the pruning of the models that are still there, and names those that did not come clean."""
        stained = []
        for model, pruner in ((model(), pruner()) for model, pruner in self._pruned):
            if pruner is None:
                continue
            pruner.remove()
            if model is not None and is_hooked(model):
                stained.append(type(model).__name__)
        self._pruned.clear()
        return stained

    def _outermost(self, function: Callable[..., Any], made: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        """Adopts what ``function`` makes, unless it runs inside of another one that makes something larger."""

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                result = function(*args, **kwargs)
            finally:
                self._depth -= 1
            if self._depth == 0:
                found = made(args, result)
                self._adopt(found[0] if isinstance(found, tuple) else found)
            return result

        return wrapped

    def _adopt(self, model: Any) -> None:
        name = type(model).__name__
        if not isinstance(model, CLASSES):  # `from_pretrained` loads others too
            return
        if is_hooked(model):  # a copy whose hooks came along
            self.wrapped[name] += 1
            return
        try:
            pruner = prune(with_head(model), self._method)
        except (TypeError, ValueError) as error:
            self.left_alone[f"{name}: {error}"] += 1
            return
        self.wrapped[name] += 1
        self._pruned.append((ref(model), ref(pruner)))


def with_head(model: Any) -> Any:
    """What `prune` takes for ``model``: itself, or around a bare one the class that has the head, without a head."""
    kind = next((head for bare, head in HEADS.items() if isinstance(model, bare)), None)
    if kind is None:
        return model
    around = kind.__new__(kind)
    nn.Module.__init__(around)
    around.config, around.model = model.config, model
    return around


def deepcopy_module(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What `copy.deepcopy` does with a module that says nothing about it."""
    new = type(model).__new__(type(model))
    memo[id(model)] = new
    new.__setstate__(copy.deepcopy(vars(model), memo))
    return new


def is_hooked(model: nn.Module) -> bool:
    """Whether any module of ``model`` has a hook or a replaced method of vitcop."""
    for module in model.modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values(), *vars(module).values())
        if any(_is_ours(hook) for hook in hooks if callable(hook)):
            return True
    return False


def _is_ours(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__module__", "")).startswith("vitcop_")
