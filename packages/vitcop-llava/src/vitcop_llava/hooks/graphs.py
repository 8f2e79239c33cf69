"""Work of fixed shapes, recorded once and replayed: a CUDA graph, and on a CPU the same run without one.

A graph launches everything that it holds at once, where a host would take microseconds for each kernel. It reads and
writes the memory that it was recorded with. So inputs are copied in, and what comes out is copied before anybody else
replays it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import torch
from torch import Tensor

Work = Callable[..., tuple[Tensor, ...]]

NEW = "its shapes were new"

_GRAPHS, _SHAPES = 32, 1024
"""How many graphs are kept, and how many shapes are known to have been seen once. A prompt takes one for each segment
and one for the tower; the one that was used longest ago goes."""


class Graph:
    """One recording.

    Args:
        work: What is recorded: takes tensors, and gives tensors. On a CPU it is run instead.
        inputs: Of the shapes that it is recorded for.
        pool: Memory to share with graphs that never run at the same time; None for its own, or on a CPU.
        is_warm: Whether ``work`` has run before. If not, it is run once ahead.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor], pool: Any = None, *, is_warm: bool = False) -> None:
        self._inputs = rooms_for(inputs, is_warm=is_warm)
        self._work: Work | None = work
        self._graph: torch.cuda.CUDAGraph | None = None
        self._fill(inputs)
        if inputs[0].device.type == "cuda":
            self._record(work, inputs[0].device, pool, is_warm=is_warm)
            self._work = None  # which may hold on to a cache

    def _record(self, work: Work, device: torch.device, pool: Any, *, is_warm: bool) -> None:
        with torch.cuda.device(device):
            own = torch.cuda.current_stream()
            if not is_warm:  # libraries choose kernels and take memory when they are first called
                aside = torch.cuda.Stream(device)
                aside.wait_stream(own)
                with torch.cuda.stream(aside):
                    work(*self._inputs)
                own.wait_stream(aside)
            graph = self._graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may go on with their own work.
                with _own_workspaces(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    self._outputs = work(*self._inputs)
            except BaseException:
                _end_failed(device, pool)
                raise
            finally:
                torch.cuda.set_stream(own)  # torch leaves its own on where the recording fails

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        with torch.inference_mode():  # outside of it its tensors could not be written to
            torch._foreach_copy_(self._inputs, [*inputs])

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on ``inputs``, of the shapes that it was recorded for, and return what comes out, to keep."""
        self._fill(inputs)
        if self._work is not None:
            return [*self._work(*self._inputs)]
        assert self._graph is not None  # it has one or the other
        self._graph.replay()
        return [each.clone() for each in self._outputs]


def rooms_for(inputs: Sequence[Tensor], *, is_warm: bool) -> list[Tensor]:
    """Return memory for the inputs of a recording.

    Args:
        inputs: What it is made for.
        is_warm: Whether the work has run before. Then tensors of inference mode get such: compiled code asks for it,
            and would be compiled anew. If not, the recording serves calls of both kinds, and is of none.
    """
    rooms = list[Tensor]()
    for each in inputs:
        with torch.inference_mode(mode=is_warm and each.is_inference()):
            rooms.append(torch.empty(each.shape, dtype=each.dtype, device=each.device))
    return rooms


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let a recording have cuBLAS workspaces of its own. torch keeps one for each stream: made in a recording, it would
    hold that recording's memory for good, and later ones would read it when it is gone.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _end_failed(device: torch.device, pool: Any) -> None:
    """Tell torch's allocator that a recording that failed is over. torch does so only for one that did not: until then
    it gives all memory as if for a recording, and lets no other recording share the pool.
    """
    with suppress(RuntimeError):  # it was over already
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)


class Graphs:
    """Recordings of one model, by what they depend on. Threads may share them."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[int, str] = OrderedDict()  # by the hash of a key, which may be long
        self._pools: dict[Hashable, Any] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def clear(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()
            self._pools.clear()

    def run(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> list[Tensor] | str:
        """Replay ``work``, or record it where its shapes are seen for the second time.

        Args:
            key: What a recording depends on beside the shapes and places of ``inputs``.
            work: As for `Graph`.
            inputs: Likewise.

        Returns:
            What ``work`` gives, or why it has to be run as it is.
        """
        key = (key, place_of(inputs[0].device), shapes_of(inputs))
        with self._lock:
            graph = self._graphs.get(key)
            if graph is None:
                obstacle = self._seen.get(hash(key))
                if obstacle is None:
                    self._note(key, "")
                    return NEW
                made = obstacle or self._record(key, work, inputs)
                if isinstance(made, str):
                    return made
                graph = self._graphs[key] = made
                if len(self._graphs) > _GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            return graph(inputs)

    def record(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> Graph | str:
        """Return a recording of ``work``, which has run before, for the caller to keep; or why there is none. What once
        failed under the same key is not tried again.
        """
        key = (key, place_of(inputs[0].device), shapes_of(inputs))
        with self._lock:
            return self._seen.get(hash(key)) or self._record(key, work, inputs, is_warm=True)

    def replay(self, graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run what `record` gave: recordings share memory, so only one at a time."""
        with self._lock:
            return graph(inputs)

    def _record(self, key: Hashable, work: Work, inputs: Sequence[Tensor], *, is_warm: bool = False) -> Graph | str:
        """Return a new graph, or why there is none."""
        place = place_of(inputs[0].device)
        if place[0].type == "cuda" and place not in self._pools:
            self._pools[place] = torch.cuda.graph_pool_handle()
        try:
            return Graph(work, inputs, self._pools.get(place), is_warm=is_warm)
        except RuntimeError as error:  # of CUDA: something in there waits for the device, or has no memory left
            self._pools.pop(place, None)
            self._note(key, obstacle := f"it cannot be recorded: {str(error).partition(chr(10))[0]}")
            return obstacle

    def _note(self, key: Hashable, obstacle: str) -> None:
        self._seen[hash(key)] = obstacle
        if len(self._seen) > _SHAPES:
            self._seen.popitem(last=False)


def place_of(device: torch.device) -> tuple[torch.device, int]:
    """Return a device and the number of the stream that this thread works on there: a graph belongs to both."""
    return device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def shapes_of(tensors: Sequence[Tensor]) -> tuple[Hashable, ...]:
    """Return what a recording needs to know of its inputs."""
    return tuple((each.shape, each.dtype, each.device) for each in tensors)
