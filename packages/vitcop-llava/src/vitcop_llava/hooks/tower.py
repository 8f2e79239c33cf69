"""The layers of the vision tower above the selected feature: the model runs them, and nobody reads what they give.

They are passed by where the model encodes images that are to be pruned. The tower runs whole wherever somebody may be
looking: a forward or backward hook that is not ours on it or on a layer that would be passed by, outputs of every layer
asked for, layers added or swapped, code that was compiled, and every call by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules

from vitcop_llava.families import Parts
from vitcop_llava.hooks.active import tower_has_ended, tower_top
from vitcop_llava.hooks.patching import RECORDING, Removable, Replacement, comes_from

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_OWN = ("vitcop_llava.hooks.vision", RECORDING)
"""Modules whose hooks look at nothing above the selected feature: ours, and transformers' recording of outputs."""


class TowerHooks:
    """Lets layers of the tower be passed by. Holds the parts, and no state of any call."""

    def __init__(self, parts: Parts, owner: int) -> None:
        self._parts, self._owner = parts, owner
        self._first = self.top({}) or len(parts.tower_layers)

    @property
    def modules(self) -> list[nn.Module]:
        """The layers that may be passed by."""
        return [*self._parts.tower_layers[self._first :]]

    def attach(self) -> Iterator[Removable]:
        """Replace the forward of these layers, yielding what undoes it."""
        for number, layer in enumerate(self.modules, self._first):
            yield Replacement(layer, "forward", partial(self._run_or_pass, number))

    def top(self, given: Mapping[str, Any]) -> int | None:
        """Return the last hidden state that a call of the encoder reads, counted from 0; None where all are needed.

        Args:
            given: The arguments of ``get_image_features`` or ``get_video_features``.
        """
        if not self._parts.tower_layers or given.get("output_hidden_states") or given.get("output_attentions"):
            return None
        config: Any = self._parts.base.config
        choice = given.get("vision_feature_layer")
        choice = config.vision_feature_layer if choice is None else choice
        layers: list[Any] = [*choice] if isinstance(choice, list | tuple) else [choice]
        states = len(self._parts.tower_layers) + 1
        if not layers or not all(isinstance(layer, int) and -states <= layer < states for layer in layers):
            return None
        return max(int(layer) % states for layer in layers)

    def last_wanted(self, given: Mapping[str, Any]) -> int | None:
        """Return `top`, where nobody could see that the layers above it are passed by."""
        top = self.top(given)
        if top is None or torch.compiler.is_compiling() or torch_modules._has_any_global_hook():
            return None
        tower: Any = self._parts.vision_tower
        above = self._parts.tower_layers[top:]
        if (*tower.encoder.layers,) != self._parts.tower_layers:
            return None
        watched = [tower, tower.encoder, *(part for layer in above for part in layer.modules())]
        return None if any(map(_is_watched, watched)) else top

    def _run_or_pass(self, number: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        top = tower_top(self._owner)
        if top is None or number < top:
            return original(*args, **kwargs)
        if number == len(self._parts.tower_layers) - 1:
            tower_has_ended()
        return args[0] if args else kwargs["hidden_states"]


def _is_watched(module: nn.Module) -> bool:
    for hooks in map(vars(module).__getitem__, _HOOKS):
        if hooks and not all(comes_from(hook, _OWN) for hook in hooks.values()):
            return True
    return False
