"""The hook on the step of the language model that adds features of the vision tower between layers, as in Qwen3-VL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vitcop_llava.families import Parts
from vitcop_llava.hooks.active import active_call
from vitcop_llava.hooks.patching import Removable, Replacement
from vitcop_llava.hooks.runs import Prefill

_STEP = "_deepstack_process"
"""Takes hidden states, a mask of columns and features."""


class DeepstackHooks:
    """Replaces the step while a call is pruned. Holds no state of any call."""

    def __init__(self, parts: Parts, owner: int) -> None:
        self._parts, self._owner = parts, owner

    def attach(self) -> Iterator[Removable]:
        """Replace the step, yielding what undoes it."""
        if self._parts.deepstack:
            yield Replacement(self._parts.language_model, _STEP, self._add)

    def _add(self, original: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = None if torch.compiler.is_compiling() else active_call(self._owner)
        run = None if call is None else call.run
        if not isinstance(run, Prefill) or run.deepstack is None:
            return original(hidden_states, *args, **kwargs)
        return run.deepstack.add(hidden_states, run.segment)
