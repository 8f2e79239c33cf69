"""A recording that a CPU can make: it stands for a CUDA graph, and is as strict as one.

What is recorded is the operators, on the very tensors that they were called with. A replay runs these again and puts
what comes out where it was at first, and no line of Python that stood between them. As with a graph, recording changes
nothing on the device, and fails where the host has to know a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitcop_llava.hooks import graphs, step_capture

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[Tensor, Tensor] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Return that compiled code may run under it."""
        return True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function._schema.name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function._schema.name}")
        if function._schema.is_mutable:
            for argument, value in zip(function._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and value not in self.before:
                    self.before[value] = value.clone()
        found = function(*args, **given)
        held = {each.untyped_storage().data_ptr() for each in tree_leaves((args, given)) if isinstance(each, Tensor)}
        made = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        own = [each for each in made if each.untyped_storage().data_ptr() not in held]
        self.calls.append((function, args, given, own))
        return found

    def undo(self) -> None:
        for tensor, value in self.before.items():
            tensor.copy_(value)

    def replay(self) -> None:
        for function, args, kwargs, own in self.calls:
            found = function(*args, **kwargs)
            if own:
                new = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
                for one, other in zip(own, new, strict=True):
                    one.copy_(other)


class Tape(graphs.Graph):
    """See above.

    Attributes:
        made: Tokens that were recorded.
        replays: And replayed.
    """

    made = replays = 0

    def __init__(
        self, work: Callable[..., Any], inputs: Sequence[Tensor], pool: Any = None, *, is_warm: bool = False
    ) -> None:
        self._inputs, self._operators = [each.clone() for each in inputs], _Operators()
        try:
            with self._operators:
                self._outputs = work(*self._inputs)
        finally:
            self._operators.undo()
        self._is_token = is_warm
        Tape.made += self._is_token

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self._fill(inputs)
        self._operators.replay()
        Tape.replays += self._is_token
        return [each.clone() for each in self._outputs]


@contextmanager
def taped() -> Iterator[type[Tape]]:
    """Record on a CPU as on a GPU, inside the block."""
    Tape.made = Tape.replays = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "Graph", Tape)
        patch.setattr(step_capture, "GRAPHS_ON", frozenset({"cpu", "cuda"}))
        yield Tape
