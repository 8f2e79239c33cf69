"""What a stored result was measured on: that of vitcop-llava, and the versions of what decodes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vitcop_llava.environment import environment as base_environment

_PACKAGES = ("vitcop-video", "av", "decord", "torchcodec")


def environment() -> dict[str, Any]:
    """Processor, cores, accelerator and package versions."""
    found: dict[str, Any] = base_environment()
    return found | {"packages": found["packages"] | {name: _version(name) for name in _PACKAGES}}


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """How to repeat a run: its command, without the name of the file that it was stored in."""
    kept = list(sys.argv[1:] if arguments is None else arguments)
    for option in ("--out", "--clip"):
        if option in kept:
            del kept[kept.index(option) : kept.index(option) + 2]
    return shlex.join(["python", "-m", module, *kept])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
