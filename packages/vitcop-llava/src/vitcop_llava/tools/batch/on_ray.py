"""Rows shared among the machines of a Ray cluster. Needs the extra ``ray``, and is the only module that imports it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from importlib import import_module
from logging import ERROR, getLogger
from pathlib import Path
from socket import create_connection
from typing import Any

from vitcop_llava.tools.batch.answerer import Answerer
from vitcop_llava.tools.batch.processes import WorkerError
from vitcop_llava.tools.batch.rows import Outcome, Row

_OUTCOME = ("answer", "error", "visual_tokens", "average_tokens")
_HERE = ("local", "127.0.0.1")
"""The address that starts a cluster on this machine, and where that one listens: to no other machine."""
_PATIENCE = 10
"""Seconds that the head of a cluster has to answer."""


def answer_on_ray(
    address: str, settings: Mapping[str, Any], rows: Iterator[tuple[int, Row]], *, workers: int | None, window: int
) -> Generator[dict[int, Outcome]]:
    """Yield the outcomes of all rows, as they come.

    Ray runs what a lost process or machine had again. So a row's outcome may come twice, where a machine is lost after
    it was sent; the first counts.

    Args:
        address: Of the cluster; ``auto`` finds it, ``local`` starts one here.
        settings: The arguments of an `Answerer`. It is made on the cluster, where a folder must be found by its name.
        rows: Their media are names of files, which every machine can read.
        workers: How many models run; None for one on each GPU, or each but one of the CPUs where there is none.
        window: How many rows go out together, and are run again together.

    Raises:
        ValueError: Ray is not installed, or there is no such cluster.
        WorkerError: Ray gives up, or a model cannot be loaded there.
    """
    ray = _connect(address)
    try:
        items, refused = _items(rows)
        if items:
            yield from _run(ray, settings, items, workers, window)
        yield refused
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """Return Ray, connected to a cluster."""
    try:
        ray = import_module("ray")
        context = import_module("ray.data").DataContext.get_current()
    except ImportError as error:
        raise ValueError(
            f'--ray must be used with Ray Data, got none: {error}; pip install "vitcop-llava[ray]"'
        ) from error
    context.enable_progress_bars = False  # the command has its own
    getLogger("ray.data").setLevel(ERROR)
    local, own = _HERE
    given = {"include_dashboard": False, "_node_ip_address": own} if address == local else {}
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="error", **given)
    except (OSError, OverflowError, ValueError) as error:  # ConnectionError is one
        raise ValueError(f"--ray must be the address of a cluster, auto or local, got {address}: {error}") from error
    return ray


def _spread() -> dict[str, Any]:
    return {"scheduling_strategy": "SPREAD"}


def _check_reachable(address: str) -> None:
    """Raise where nothing listens at ``host:port``: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
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
    ray: Any, settings: Mapping[str, Any], items: list[dict[str, Any]], workers: int | None, window: int
) -> Iterator[dict[int, Outcome]]:
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if settings["device"] != "cpu" else 0
    most = gpus or max(1, int(there.get("CPU", 1)) - 1)
    # A block is what is run again after a loss, and what an instance is called with.
    data = ray.data.from_items(items, override_num_blocks=-(-len(items) // window))
    answered = data.map_batches(
        Answerer,
        fn_constructor_kwargs=dict(settings),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=workers or 1, max_size=workers or most),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        ray_remote_args_fn=_spread,
    )
    try:
        for block in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield {row["line"]: Outcome(*(row[name] for name in _OUTCOME)) for row in block.to_pylist()}
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise WorkerError(f"Ray: {last[0]}") from error
