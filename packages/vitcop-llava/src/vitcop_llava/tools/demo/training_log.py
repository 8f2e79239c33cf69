"""The log of a training: one JSON object a line, with what it takes to repeat it at the top."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers

from vitcop_core.journal import Journal

NOTE = "the stages not run here were run before, as the lines above say"
"""What stands in the log of a run that starts from another's weights."""


@contextmanager
def training_log(args: argparse.Namespace, paths: Collection[str]) -> Iterator[Callable[..., None]]:
    """Write ``training.log`` into the folder ``args.out``, and first the settings and versions.

    Until the block ends without an error it is ``training.log.partial``.

    Args:
        args: The settings.
        paths: Names of those that say where something lies; they are left out.

    Yields:
        What writes a line of named values.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    with Journal(args.out / "training.log") as journal:

        def log(**fields: object) -> None:
            journal.add({k: round(v, 5) if isinstance(v, float) else v for k, v in fields.items()})

        settings = {name: str(value) for name, value in vars(args).items() if name not in paths}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
        log(stage="start", settings=settings, versions=versions, machine=platform.machine())
        yield log
        journal.finish()
