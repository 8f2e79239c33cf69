"""What is running now, in context variables: threads, tasks and nested models never see each other's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from vitcop_llava.state import Call, TowerPass


@dataclass(frozen=True)
class Generation:
    """A running ``generate`` of the model that ``owner`` prunes; as an assistant's draft it sees no images."""

    owner: int
    is_draft: bool


_call: ContextVar[Call | None] = ContextVar("vitcop_call", default=None)
_tower: ContextVar[TowerPass | None] = ContextVar("vitcop_tower", default=None)
_generation: ContextVar[Generation | None] = ContextVar("vitcop_generation", default=None)
_continuation: ContextVar[int] = ContextVar("vitcop_continuation", default=0)


def active_call(owner: int | None = None) -> Call | None:
    """The forward pass that hooks are running in, in this thread or task; None if it is not ``owner``'s."""
    call = _call.get()
    return call if call is None or owner is None or call.owner == owner else None


def open_call(owner: int) -> Call:
    """Make a new call of ``owner`` the active one."""
    call = Call(owner, outer=_call.get(), continuation=_continuation.get())
    _call.set(call)
    _continuation.set(0)
    return call


def close_call(call: Call) -> None:
    """Put back the call that was active before, and let go of what only the forward needed."""
    _call.set(call.outer)
    call.outer = None
    if call.run is not None:
        call.run.release()


def announce_continuation(columns: int) -> None:
    """Note how many columns at the end of the call that opens next follow the prompt."""
    _continuation.set(columns)


@contextmanager
def generating(owner: int, *, is_draft: bool) -> Iterator[None]:
    """Run a ``generate`` of the model that ``owner`` prunes."""
    token = _generation.set(Generation(owner, is_draft))
    try:
        yield
    finally:
        _generation.reset(token)


def active_generation(owner: int) -> Generation | None:
    """The ``generate`` of ``owner``'s model that is running, in this thread or task."""
    generation = _generation.get()
    return generation if generation is not None and generation.owner == owner else None


def active_tower(owner: int) -> TowerPass | None:
    """The image encoding that hooks of ``owner`` are running in."""
    tower = _tower.get()
    return tower if tower is not None and tower.encoded.owner == owner else None


def set_tower(tower: TowerPass | None) -> None:
    """Make ``tower`` the active one."""
    _tower.set(tower)
