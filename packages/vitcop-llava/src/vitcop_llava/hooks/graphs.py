"""Work of fixed shapes, recorded once and replayed: a CUDA graph, and on a CPU the same run without one.

A graph launches everything that it holds at once, where a host would take microseconds for each kernel. It reads and
writes the memory that it was recorded with. So inputs are copied in, and what comes out is copied before anybody else
replays it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

Work = Callable[..., tuple[Tensor, ...]]

_GRAPHS, _SHAPES = 32, 1024
"""How many graphs are kept, and how many shapes are known to have been seen once. A prompt takes one for each segment
and one for the tower; the one that was used longest ago goes."""


class Graph:
    """One recording.

    Args:
        work: What is recorded: takes tensors, and gives tensors that depend on nothing else.
        inputs: Of the shapes that it is recorded for.
        pool: Memory to share with graphs that never run at the same time; None for its own, or on a CPU.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor], pool: Any = None) -> None:
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(mode=False):
            self._inputs = [torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in inputs]
        self._work = work
        self._graph: torch.cuda.CUDAGraph | None = None
        self._fill(inputs)
        if inputs[0].device.type == "cuda":
            self._record(inputs[0].device, pool)

    def _record(self, device: torch.device, pool: Any) -> None:
        aside = torch.cuda.Stream(device)
        with torch.cuda.device(device):
            own = torch.cuda.current_stream()
            aside.wait_stream(own)
            with torch.cuda.stream(aside):
                self._work(*self._inputs)  # libraries choose kernels and take memory when they are first called
            own.wait_stream(aside)
            graph = self._graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may go on with their own work.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    self._outputs = self._work(*self._inputs)
            finally:
                torch.cuda.set_stream(own)  # torch leaves its own on where the recording fails

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self._inputs, [*inputs])

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on ``inputs``, of the shapes that it was recorded for, and return what comes out, to keep."""
        self._fill(inputs)
        if self._graph is None:
            return [*self._work(*self._inputs)]
        self._graph.replay()
        return [each.clone() for each in self._outputs]


class Graphs:
    """Recordings of one model, by what they depend on. Threads may share them."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, str] = OrderedDict()
        self._pools: dict[Hashable, Any] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> list[Tensor] | str:
        """Replay ``work``, or record it where its shapes are seen for the second time.

        Args:
            key: What a recording depends on beside the shapes and places of ``inputs``.
            work: As for `Graph`.
            inputs: Likewise.

        Returns:
            What ``work`` gives, or why it has to be run as it is.
        """
        where = inputs[0].device
        stream = torch.cuda.current_stream(where).cuda_stream if where.type == "cuda" else 0
        place = (where, stream)
        shapes = tuple((each.shape, each.dtype, each.device) for each in inputs)
        key = (key, place, shapes)
        with self._lock:
            graph = self._graphs.get(key)
            if graph is None:
                obstacle = self._seen.get(key)
                if obstacle is None:
                    obstacle = "its shapes were new"
                    self._note(key, "")
                if obstacle:
                    return obstacle
                graph = self._record(key, place, work, inputs)
                if isinstance(graph, str):
                    return graph
            self._graphs.move_to_end(key)
            return graph(inputs)

    def _record(self, key: Hashable, place: tuple[torch.device, int], work: Work, inputs: Sequence[Tensor]) -> Any:
        """Return a new graph, kept under its key; or why there is none."""
        if place[0].type == "cuda" and place not in self._pools:
            self._pools[place] = torch.cuda.graph_pool_handle()
        try:
            graph = Graph(work, inputs, self._pools.get(place))
        except RuntimeError as error:  # of CUDA: something in there waits for the device, or has no memory left
            self._note(key, obstacle := f"it cannot be recorded: {str(error).partition(chr(10))[0]}")
            return obstacle
        self._graphs[key] = graph
        if len(self._graphs) > _GRAPHS:
            self._graphs.popitem(last=False)
        return graph

    def _note(self, key: Hashable, obstacle: str) -> None:
        self._seen[key] = obstacle
        if len(self._seen) > _SHAPES:
            self._seen.popitem(last=False)
