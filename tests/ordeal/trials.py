"""What an ordeal is made of: kinds of input, trials of one input each, and what a trial may come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

LOG = "log"
"""What a worker prints goes to this file of its folder."""

LONGEST_MESSAGE = 2000
"""Characters of an error's message: a file's content has no place in one."""

Trial = Callable[[Random], None]
"""Tries one input. Returns where it was accepted, raises `RefusedError` where it was refused as documented; any other
exception is a fault."""


class RefusedError(Exception):
    """An input was refused, in a way that is documented."""


class FaultError(Exception):
    """Something that must not happen happened, and no exception tells of it."""


@contextmanager
def documented(*errors: type[Exception]) -> Iterator[None]:
    """Lets these errors be refusals, if their message is one that can be read."""
    try:
        yield
    except errors as error:
        said = str(error)
        if not said or len(said) > LONGEST_MESSAGE:
            raise FaultError(
                f"a {type(error).__name__} with a message of {len(said):,} characters: {said:.200}"
            ) from error
        raise RefusedError from error


def demand(condition: bool, what: str) -> None:
    """Makes a fault of a condition that does not hold."""
    if not condition:
        raise FaultError(what)


def random_of(seed: int, kind: str, number: int) -> Random:
    """What a trial draws from: the same whatever came before."""
    return Random(f"{seed}/{kind}/{number}")
