"""Chat templates: programs that come with a checkpoint, and may fail in any way or never end."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, Timer, get_ident
from typing import Any

from vitcop_core.shown import told
from vitcop_llava.tools.model.processors import ModelError

TIME_LIMIT = 10.0
"""Seconds that a template may take for one prompt."""


class _ExpiredError(BaseException):
    """Time is up. No ``Exception``, so that nobody on the way takes it for an error of a template."""


def render_chat(processor: Any, chat: Sequence[Mapping[str, Any]], template: str | None = None) -> str:
    """Return the prompt that a chat template makes of a conversation, with the beginning of an answer.

    Args:
        processor: Of the model.
        chat: Messages, as transformers takes them.
        template: None for the processor's own.

    Raises:
        ModelError: The template fails, or takes longer than `TIME_LIMIT`.
    """
    try:
        with _limited(TIME_LIMIT):
            prompt: str = processor.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True, tokenize=False
            )
    except _ExpiredError:
        raise ModelError(
            f"model must have a chat template that ends, got one that goes on after {TIME_LIMIT:g} s"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"model must have a chat template that can be used, got one that fails: {told(error)}"
        ) from error
    return prompt


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_ExpiredError` in this thread, whichever it is, if the block is still running after so many seconds.

    It is raised between two steps of the interpreter, which is where a template spends its time: jinja makes Python of
    it. A single long step, such as a multiplication of texts, ends first.
    """
    thread, lock, is_over = get_ident(), Lock(), False

    def expire() -> None:
        with lock:
            if not is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_ExpiredError))

    timer = Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        # What was raised before this is seen at the latest in the calls below, so never behind the block.
        with lock:
            is_over = True
        timer.cancel()
