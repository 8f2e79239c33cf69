"""Where each model family keeps its parts: one module a family, and nothing else knows them."""

from __future__ import annotations

from torch import nn

from vitcop_llava.families import llava, llava_next
from vitcop_llava.families.base import Parts

__all__ = ["Parts", "locate"]

_FAMILIES = {
    "LlavaForConditionalGeneration": llava.locate,
    "LlavaNextForConditionalGeneration": llava_next.locate,
}


def locate(model: nn.Module) -> Parts:
    """Finds the parts of a supported model.

    Raises:
        TypeError: The model is of a family that vitcop has no adapter for.
        ValueError: The family is supported, and has a part that cannot be pruned (a tower without CLS, for example).
    """
    for kind in type(model).__mro__:
        if kind.__module__.startswith("transformers.") and kind.__name__ in _FAMILIES:
            return _FAMILIES[kind.__name__](model)
    raise TypeError(f"model: {type(model).__name__} is not supported; supported: {', '.join(sorted(_FAMILIES))}")
