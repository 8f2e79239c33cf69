"""Rows shared among the machines of a Ray cluster. Needs the extra ``ray``, and is the only module that imports it."""

from __future__ import annotations

import os
import pickle
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import fields
from importlib import import_module
from logging import CRITICAL, getLogger
from pathlib import Path
from socket import create_connection
from typing import Any

from vitcop_llava.tools.batch.processes import TRIES, Make, WorkerError
from vitcop_llava.tools.batch.rows import Outcome, Row, columns_of, rows_of

_HERE = ("local", "127.0.0.1")
"""The address that starts a cluster on this machine, and where that one listens: to no other machine."""
_PATIENCE = 10
"""Seconds that the head of a cluster has to answer."""


def answer_on_ray(
    address: str,
    make: Make,
    device: str,
    rows: Iterator[tuple[int, Row]],
    *,
    workers: int | None,
    sizes: tuple[int, int],
) -> Generator[dict[int, Outcome]]:
    """Yield the outcomes of all rows, as they come.

    Ray runs what a lost process or machine had again. So a row's outcome may come twice, where a machine is lost after
    it was sent; the first counts. A row under way in a process that ends runs alone the next time, and where it ends
    one again it has an error: Ray itself would try for ever. Until the last outcome, what is printed goes to stderr.

    Args:
        address: Of the cluster; ``auto`` finds it, ``local`` starts one here.
        make: Loads a model on a device; it is called on the machines of the cluster.
        device: Of each model; ``auto`` is a GPU where the cluster has some.
        rows: Their media are names of files, which every machine can read.
        workers: How many models run; None for one on each GPU, or each but one of the CPUs where there is none.
        sizes: How many rows at least, and at most, go out together.

    Raises:
        ValueError: Ray is not installed, or there is no such cluster.
        WorkerError: Ray gives up.
        Exception: What ``make`` raises.
    """
    # Ray prints there what it loses and runs again; the result is what belongs there.
    with redirect_stdout(sys.stderr):
        ray = _connect(address)
        try:
            items, refused = _items(rows)
            if items:
                yield from _run(ray, make, device, items, workers, sizes)
            yield refused
        finally:
            ray.shutdown()


def _connect(address: str) -> Any:
    """Return Ray, connected to a cluster."""
    if "://" in address:  # Ray's client
        raise ValueError(f"--ray must be host:port, auto or local, got {address}; run on a machine of the cluster")
    try:
        ray = import_module("ray")
        context = import_module("ray.data").DataContext.get_current()
    except ImportError as error:
        raise ValueError(
            f'--ray must be used with Ray Data, got none: {error}; pip install "vitcop-llava[ray]"'
        ) from error
    context.enable_progress_bars = False  # the command has its own
    getLogger("ray.data").setLevel(CRITICAL)  # what fails is raised too
    local, own = _HERE
    given: dict[str, Any] = {}
    if address == local:
        given = {"include_dashboard": False, "_node_ip_address": own}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # this cluster is ours, and tells nobody of itself
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="error", **given)
    except (OSError, OverflowError, ValueError) as error:  # ConnectionError is one
        raise ValueError(f"--ray must be the address of a cluster, auto or local, got {address}: {error}") from error
    return ray


def _check_reachable(address: str) -> None:
    """Raise where nothing listens at ``host:port``: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        create_connection((host, int(port)), _PATIENCE).close()


def _items(rows: Iterator[tuple[int, Row]]) -> tuple[list[dict[str, Any]], dict[int, Outcome]]:
    """Return the rows as Ray takes them, and the outcomes of those that it cannot take."""
    items, refused = list[dict[str, Any]](), dict[int, Outcome]()
    for number, row in rows:
        # Processes there have other working directories.
        item = {"line": number, "images": [str(Path(path).absolute()) for path in row.media], "question": row.question}
        try:
            "".join([*item["images"], item["question"]]).encode()
        except UnicodeEncodeError as error:
            refused[number] = Outcome(error=f"names and questions must be UTF-8 on Ray, got {error}")
        else:
            items.append(item)
    return items, refused


def _run(
    ray: Any, make: Make, device: str, items: list[dict[str, Any]], workers: int | None, sizes: tuple[int, int]
) -> Iterator[dict[int, Outcome]]:
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if device != "cpu" else 0
    many = workers or gpus or max(1, int(there.get("CPU", 1)) - 1)
    least, most = sizes
    # A block is what an instance is called with, and what is run again after a loss. Every instance gets some.
    block = min(most, max(least, -(-len(items) // (2 * many))))
    answered = ray.data.from_items(items, override_num_blocks=-(-len(items) // block)).map_batches(
        _Machine,
        fn_constructor_args=(make, device, _ledger(ray)),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=workers or 1, max_size=many),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    try:
        for found in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows = found.to_pylist()
            if (failure := rows[0]["failure"]) is not None:
                raise pickle.loads(failure)
            yield {row["line"]: Outcome(**{each.name: row[each.name] for each in fields(Outcome)}) for row in rows}
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise WorkerError(f"Ray: {last[0]}") from error


class _Machine:
    """A model on a machine of the cluster, as Ray Data calls it: with a block of columns.

    Where it cannot be made, every block says why: Ray would print what it raises, with pages of its own.
    """

    def __init__(self, make: Make, device: str, ledger: Any) -> None:
        self._ledger, self._get = ledger, import_module("ray").get
        self._failure: bytes | None = None
        self._model = ExitStack()  # open until the process ends
        try:
            self._answerer = self._model.enter_context(make(device))
        except Exception as error:
            self._failure = pickle.dumps(error)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        lines, found = [int(line) for line in columns["line"]], dict[int, Outcome]()
        if self._failure is None:
            found = self._answer(dict(zip(lines, rows_of(columns), strict=True)))
        outcomes = [found.get(line, Outcome()) for line in lines]
        return {"line": lines, "failure": [self._failure] * len(lines)} | columns_of(outcomes)

    def _answer(self, rows: Mapping[int, Row]) -> dict[int, Outcome]:
        ends: Mapping[int, int] = self._get(self._ledger.ends.remote([*rows]))
        found = {line: Outcome(error=f"its process ended {TRIES} times") for line in rows if ends[line] >= TRIES}
        alone = [[line] for line in rows if 0 < ends[line] < TRIES]
        for part in ([line for line in rows if not ends[line]], *alone):
            for outcomes in self._answerer.stream({line: rows[line] for line in part}, self._begin):
                self._ledger.finish.remote([*outcomes])
                found |= outcomes
        return found

    def _begin(self, lines: list[int]) -> None:
        self._get(self._ledger.begin.remote(lines))


class _Ledger:
    """Which rows are under way, and so in which ones a process ended. It outlives the processes."""

    def __init__(self) -> None:
        self._under_way = Counter[int]()

    def begin(self, lines: Sequence[int]) -> None:
        self._under_way.update(lines)

    def finish(self, lines: Sequence[int]) -> None:
        for line in lines:
            del self._under_way[line]

    def ends(self, lines: Sequence[int]) -> dict[int, int]:
        """Return how often a row that is not under way now was begun and not finished."""
        return {line: self._under_way[line] for line in lines}


def _ledger(ray: Any) -> Any:
    """Return a ledger beside the command: the machine whose loss ends the command anyway."""
    here = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    place = here(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Ledger).options(num_cpus=0, scheduling_strategy=place).remote()
