"""Kinds of input, a module each: how many of them are tried, and how a trial of one is found."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ordeal.trials import Trial

SHARES = {
    "images": 380,
    "videos": 20,
    "prefixes": 180,
    "lines": 10,
    "checkpoints": 10,
    "methods": 270,
    "settings": 120,
    "options": 10,
}
"""Of 1,000 inputs of the whole ordeal; cheap ones often."""

SHORT = {
    "images": 200,
    "videos": 12,
    "prefixes": 100,
    "lines": 16,
    "checkpoints": 9,
    "methods": 200,
    "settings": 120,
    "options": 16,
}
"""In the short form."""

SPACE = {"videos": 2**33}
"""Bytes of address space that a trial may take beside what its process has, where not `USUAL_SPACE`: threads that
decode reserve much, and use little."""

USUAL_SPACE = 2**31


def preparation(name: str) -> Callable[[Path], Trial]:
    """What makes material in a folder, once a process, and returns the trial; the other kinds are not imported."""
    prepare: Callable[[Path], Trial] = import_module(f"ordeal.kinds.{name}").prepare
    return prepare
