"""What a stored result was measured on: machine and versions, as plain data."""

from __future__ import annotations

from vitcop_core.environment import Environment
from vitcop_core.environment import environment_of as environment_with

_PACKAGES = ("transformers", "numpy", "vitcop-core", "vitcop-cuda", "vitcop-llava")

VIDEO_PACKAGES = ("vitcop-video", "av", "decord", "torchcodec")
"""What reads videos, where a result is about some."""


def environment(*packages: str) -> Environment:
    """Return processor, cores, accelerator and package versions, those of further ``packages`` among them."""
    return environment_with((*_PACKAGES, *packages))
