"""A recording that a CPU can make: it stands for a CUDA graph, and is as strict as one.

What is recorded is the operators, and where the tensors lie that they were called with. A replay runs these again on
the same memory and puts what comes out where it was at first, and no line of Python that stood between them. As with a
graph, recording changes nothing on the device, it fails where the host has to know a value or code is compiled, and it
keeps no memory alive but its own. Unlike a graph, a replay that would read memory that is gone says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vitcop_llava.hooks import graphs, step_capture

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


def _compiled() -> int:
    """Return how much code has been compiled."""
    return int(counters["stats"]["unique_graphs"])


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Elsewhere:
    """A tensor in memory that a recording does not own."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage, self._dtype = StorageWeakRef(tensor.untyped_storage()), tensor.dtype
        self._place = tensor.storage_offset(), tensor.shape, tensor.stride()

    def tensor(self) -> Tensor:
        assert not self._storage.expired(), "the memory that a recording reads or writes is gone"
        storage: Any = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        return torch.empty(0, dtype=self._dtype).set_(storage, *self._place)


class _Operators(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, list[Tensor]]] = []
        self._before: list[tuple[Tensor, Tensor]] = []
        self._own = {memory_of(each) for each in inputs}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Return that compiled code may run under it."""
        return True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        if function._schema.name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function._schema.name}")
        if function._schema.is_mutable:
            for argument, value in zip(function._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._before += [(each, each.clone()) for each in tree_leaves(value)]
        found = function(*given[0], **given[1])
        held = {memory_of(each) for each in tree_leaves(given) if isinstance(each, Tensor)}
        made = [each for each in tree_leaves(found) if isinstance(each, Tensor) and memory_of(each) not in held]
        self._calls.append((function, tree_map(self._noted, given), made))
        self._own |= {memory_of(each) for each in made}
        return found

    def _noted(self, value: Any) -> Any:
        return value if not isinstance(value, Tensor) or memory_of(value) in self._own else _Elsewhere(value)

    def undo(self) -> None:
        for tensor, value in reversed(self._before):
            tensor.copy_(value)
        self._before = []

    def replay(self) -> None:
        for function, given, made in self._calls:
            args, kwargs = tree_map(lambda each: each.tensor() if isinstance(each, _Elsewhere) else each, given)
            found = function(*args, **kwargs)
            if made:
                new = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
                for one, other in zip(made, new, strict=True):
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
        self._inputs = graphs.rooms_for(inputs, is_warm=is_warm)
        self._fill(inputs)
        self._operators, compiled = _Operators(self._inputs), _compiled()
        try:
            with self._operators:
                self._outputs = work(*self._inputs)
            if _compiled() != compiled:  # which asks for the state of the device's random numbers
                raise RuntimeError("Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture")
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
