"""Where each model family keeps its parts: one module a family, and nothing else knows them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from vitcop_llava.families import llava, llava_next, llava_onevision, qwen_vl, vip_llava
from vitcop_llava.families.base import Parts

__all__ = ["ENTRY_POINTS", "Parts", "locate", "register_family", "unwrapped"]

ENTRY_POINTS = "vitcop.families"
"""The group of entry points under which an installed package offers families: model class to function."""

_FAMILIES: dict[str, Callable[[Any], Parts]] = {
    "LlavaForConditionalGeneration": llava.locate,
    "LlavaNextForConditionalGeneration": llava_next.locate,
    "VipLlavaForConditionalGeneration": vip_llava.locate,
    "LlavaOnevisionForConditionalGeneration": llava_onevision.locate,
    "Qwen2VLForConditionalGeneration": qwen_vl.locate,
    "Qwen2_5_VLForConditionalGeneration": qwen_vl.locate,
    "Qwen3VLForConditionalGeneration": qwen_vl.locate,
    "Qwen3VLMoeForConditionalGeneration": qwen_vl.locate,
}

# Known families of packages that may not be installed.
_ELSEWHERE = {"LlavaNextVideoForConditionalGeneration": "vitcop-video"}

_OF_TRANSFORMERS = frozenset({*_FAMILIES, *_ELSEWHERE})


def register_family(name: str, locate: Callable[[Any], Parts]) -> None:
    """Teach `locate` a family by hand, for code that is in no installed distribution.

    Args:
        name: The model's class, by its name; classes derived from it are of the family too, unless they have their own.
        locate: Finds the parts of such a model.
    """
    _FAMILIES[name] = locate


def unwrapped(model: Any) -> Any:
    """Return the model inside of wrappers that run it as it is: compiled, adapters, data parallel in processes.

    Raises:
        TypeError: A wrapper runs something else than the model.
    """
    while True:
        name = type(model).__name__
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif callable(getattr(model, "get_base_model", None)):
            if any(getattr(each, "is_prompt_learning", False) for each in getattr(model, "peft_config", {}).values()):
                raise TypeError(
                    f"model must not add tokens of its own to a call, got a {name} with learned prompts; merge it"
                )
            model = model.get_base_model()
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.DataParallel):
            raise TypeError(
                "model must be the model that runs, got a DataParallel, which runs copies of it; prune model.module "
                "and "
                "run it on one device, or use DistributedDataParallel"
            )
        else:
            return model


def locate(model: nn.Module) -> Parts:
    """Find the parts of a supported model, or of the one inside of its wrappers.

    Raises:
        TypeError: The model is of a family that vitcop has no adapter for, or whose adapter is in a package that is not
            installed.
        ValueError: The family is supported, and has a part that cannot be pruned (a tower without CLS, for example).
    """
    model = unwrapped(model)
    names = [kind.__name__ for kind in type(model).__mro__ if _may_be(kind)]
    for name in names:
        if found := _adapter(name):
            return found(model)
    for name in names:
        if name in _ELSEWHERE:
            raise TypeError(f"model must be of an installed family, got a {name}; pip install {_ELSEWHERE[name]}")
    known = sorted({*_FAMILIES, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})
    # The model without its head, as `model.model` is.
    whole = [f"{name.removesuffix('Model')}ForConditionalGeneration" for name in names if name.endswith("Model")]
    hint = next((f"; prune the {name} that it is a part of" for name in whole if name in {*known, *_ELSEWHERE}), "")
    if not isinstance(model, nn.Module):
        hint = "; load the model first, with its from_pretrained"
    raise TypeError(f"model must be one of {', '.join(known)}, got a {type(model).__name__}{hint}")


def load_families() -> None:
    """Import every installed package that offers a family, so that transformers gets to know its configurations."""
    for entry in entry_points(group=ENTRY_POINTS):
        _adapter(entry.name)


def _may_be(kind: type) -> bool:
    """Return whether a class may be what a family is for. Others than transformers have classes of the same names."""
    return kind.__module__.startswith("transformers.") or kind.__name__ not in _OF_TRANSFORMERS


def _adapter(name: str) -> Callable[[Any], Parts] | None:
    if name not in _FAMILIES:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            _FAMILIES[name] = entry.load()
    return _FAMILIES.get(name)
