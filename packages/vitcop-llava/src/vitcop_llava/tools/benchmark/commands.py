"""Commands that repeat a measurement, as they are stored with its result."""

from __future__ import annotations

from collections.abc import Mapping


def command_of(bench: str, given: Mapping[str, object]) -> str:
    """Return the command of a bench in this folder.

    Args:
        bench: The name of its module.
        given: Its options by the names that argparse has for them; a list is given as several words.
    """
    words = (f"--{name.replace('_', '-')} {_as_words(value)}" for name, value in given.items())
    return f"python -m vitcop_llava.tools.benchmark.{bench} {' '.join(words)}"


def _as_words(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_as_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
