"""Whether an answer is right."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_PUNCTUATION = ".,;:!?\"'`()[]"

RULE = (
    "An answer is right if it equals one of the accepted answers after both are normalized: Unicode NFKC, case folded, "
    f"runs of white space to one space, white space and the characters {_PUNCTUATION} taken off both ends."
)
"""The same in words, for reports."""


def normalize(text: str) -> str:
    """Return ``text`` as it is compared; see `RULE`."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.strip(_PUNCTUATION + " ")


def is_right(said: str, accepted: Sequence[str]) -> bool:
    """Return whether ``said`` is one of the accepted answers, up to `normalize`."""
    return normalize(said) in {normalize(answer) for answer in accepted}
