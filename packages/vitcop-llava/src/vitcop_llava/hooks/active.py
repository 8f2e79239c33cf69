"""What is running now, in context variables: threads, tasks and nested models never see each other's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from vitcop_llava.hooks.state import Call, EncodedImages, TowerPass

Value = TypeVar("Value")


@dataclass
class Generation:
    """A running ``generate`` of the model that ``owner`` prunes.

    Attributes:
        owner: The number of the pruner.
        is_draft: Whether it drafts for another: it sees no images then.
        verified: The cache of its calls that verify candidates, and ask for the logits of all of them; None where it
            drafts none. Processors of logits may call the model meanwhile, for themselves.
    """

    owner: int
    is_draft: bool
    verified: object = None


_call: ContextVar[Call | None] = ContextVar("vitcop_call", default=None)
_tower: ContextVar[TowerPass | None] = ContextVar("vitcop_tower", default=None)
_generation: ContextVar[Generation | None] = ContextVar("vitcop_generation", default=None)
_ahead: ContextVar[int | None] = ContextVar("vitcop_ahead", default=None)
_continuation: ContextVar[tuple[int, int] | None] = ContextVar("vitcop_continuation", default=None)
_replaying: ContextVar[EncodedImages | None] = ContextVar("vitcop_replaying", default=None)
_top: ContextVar[tuple[int, int] | None] = ContextVar("vitcop_top", default=None)
_encoding: ContextVar[int | None] = ContextVar("vitcop_encoding", default=None)
_expected: ContextVar[int | None] = ContextVar("vitcop_expected", default=None)


@contextmanager
def _holding(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """Give a variable a value, and put back the one before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def active_call(owner: int | None = None) -> Call | None:
    """Return the forward pass that hooks are running in, in this thread or task; None if it is not ``owner``'s."""
    call = _call.get()
    return call if call is None or owner is None or call.owner == owner else None


def open_call(owner: int) -> Call:
    """Make a new call of ``owner`` the active one."""
    announced = _continuation.get()
    continuation = announced[1] if announced is not None and announced[0] == owner else 0
    call = Call(owner, outer=_call.get(), continuation=continuation)
    _call.set(call)
    _continuation.set(None)
    _expected.set(None)
    return call


def close_call(call: Call) -> None:
    """Put back the call that was active before, and let go of what only the forward needed."""
    _call.set(call.outer)
    call.close()


def without_call() -> AbstractContextManager[None]:
    """Run a step, which no call is opened for, within another call or none."""
    return _holding(_call, None)


def announce_continuation(owner: int, columns: int) -> None:
    """Note how many columns at the end of ``owner``'s next call follow the prompt."""
    _continuation.set((owner, columns))


def expect_call(owner: int | None) -> None:
    """Note that ``owner``'s base module begins to run, and is about to open a call; None where it has ended."""
    _expected.set(owner)


def is_expected(owner: int) -> bool:
    """Return whether ``owner``'s base module runs without having opened a call: its forward is no longer the
    pruner's.
    """
    return _expected.get() == owner


def generating(owner: int, *, is_draft: bool) -> AbstractContextManager[None]:
    """Run a ``generate`` of the model that ``owner`` prunes."""
    return _holding(_generation, Generation(owner, is_draft))


def encoding_ahead(owner: int) -> AbstractContextManager[None]:
    """Run the step of ``generate`` that encodes images for the model that ``owner`` prunes."""
    return _holding(_ahead, owner)


def is_encoding_ahead(owner: int) -> bool:
    """Return whether ``generate`` of ``owner``'s model encodes images, in this thread or task."""
    return _ahead.get() == owner


def encoding(owner: int) -> AbstractContextManager[None]:
    """Encode images or clips for ``owner``: one way of encoding may be called by the other."""
    return _holding(_encoding, owner)


def is_encoding(owner: int) -> bool:
    """Return whether images or clips are being encoded for ``owner``, in this thread or task."""
    return _encoding.get() == owner


def active_generation(owner: int) -> Generation | None:
    """Return the ``generate`` of ``owner``'s model that is running, in this thread or task."""
    generation = _generation.get()
    return generation if generation is not None and generation.owner == owner else None


def active_tower(owner: int) -> TowerPass | None:
    """Return the image encoding that hooks of ``owner`` are running in."""
    tower = _tower.get()
    return tower if tower is not None and tower.encoded.owner == owner else None


def set_tower(tower: TowerPass | None) -> None:
    """Make ``tower`` the active one."""
    _tower.set(tower)


def without_tower() -> AbstractContextManager[None]:
    """Call parts of the tower by hand, as somebody else would, in the middle of encoding."""
    return _holding(_tower, None)


def replaying_tower(encoded: EncodedImages | None) -> AbstractContextManager[None]:
    """Let the vision tower replay its lower layers while it encodes what ``encoded`` is of; None: run them."""
    return _holding(_replaying, encoded)


def replaying(owner: int) -> EncodedImages | None:
    """Return what the tower of ``owner``'s model encodes by replaying layers; None where it runs them."""
    encoded = _replaying.get()
    return encoded if encoded is not None and encoded.owner == owner else None


def replay_no_more() -> None:
    """Note that the layers that are replayed have run, or cannot be replayed."""
    _replaying.set(None)


def tower_ends_at(owner: int, top: int | None) -> AbstractContextManager[None]:
    """Let the vision tower of ``owner``'s model run once without the layers above hidden state ``top``; None: whole."""
    return _holding(_top, None if top is None else (owner, top))


def tower_top(owner: int) -> int | None:
    """Return the last hidden state that is wanted of the tower of ``owner``'s model; None where all are."""
    wanted = _top.get()
    return wanted[1] if wanted is not None and wanted[0] == owner else None


def tower_has_ended() -> None:
    """Note that the tower has run: whoever calls it next gets all of it."""
    _top.set(None)
