"""Kinds of input, a module each: how many of them are tried, and how a trial of one is found."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ordeal.trials import Trial

SHARES = {
    "images": 380,
    "videos": 60,
    "prefixes": 150,
    "lines": 60,
    "checkpoints": 20,
    "methods": 200,
    "settings": 100,
    "options": 30,
}
"""Of 1,000 inputs of the whole ordeal; cheap ones often."""

SHORT = {
    "images": 300,
    "videos": 30,
    "prefixes": 150,
    "lines": 40,
    "checkpoints": 15,
    "methods": 400,
    "settings": 200,
    "options": 25,
}
"""In the short form."""

SPACE = {"videos": 2**33}
"""Bytes of address space that a trial may take beside what its process has, where not `USUAL_SPACE`: threads that
decode reserve much, and use little."""

USUAL_SPACE = 2**31


def preparation(name: str) -> Callable[[Path], Trial]:
    """What makes material in a folder, once a process, and returns the trial; nothing of the other kinds is imported."""
    prepare: Callable[[Path], Trial] = import_module(f"ordeal.kinds.{name}").prepare
    return prepare
