"""Many questions: a pruned model as a callable from columns to columns, and the processes or machines that share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcop_core.lazy import lazy_names

if TYPE_CHECKING:
    from vitcop_llava.tools.batch.answerer import Answerer
    from vitcop_llava.tools.batch.rows import Outcome, Row

__all__ = ["Answerer", "Outcome", "Row"]

# A process that only hands rows on must not wait for transformers.
_HOMES = {
    "vitcop_llava.tools.batch.answerer": ("Answerer",),
    "vitcop_llava.tools.batch.rows": ("Outcome", "Row"),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
