"""What a stored result was measured on: that of vitcop-llava, and the versions of what decodes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from vitcop_core.environment import Environment
from vitcop_llava.tools.model.environment import VIDEO_PACKAGES
from vitcop_llava.tools.model.environment import environment as environment_with


def environment() -> Environment:
    """Return processor, cores, accelerator and package versions."""
    return environment_with(*VIDEO_PACKAGES)


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """Return how to repeat a run: its command, without the name of the file that it was stored in."""
    kept = list(sys.argv[1:] if arguments is None else arguments)
    for option in ("--out", "--clip"):
        if option in kept:
            del kept[kept.index(option) : kept.index(option) + 2]
    return shlex.join(["python", "-m", module, *kept])
