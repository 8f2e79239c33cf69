"""What a budget says: how many visual tokens of an image to keep, or which share of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Budget:
    """What ``--retain`` says: tokens an image, or a share of them; exactly one is set."""

    tokens: Fraction | None = None
    share: Fraction | None = None

    @property
    def settings(self) -> dict[str, Fraction | int | float]:
        """The same as an argument of a method."""
        if self.share is not None:
            return {"retention_ratio": self.share}
        tokens = self.tokens or Fraction(1)
        return {"retained_tokens": int(tokens) if tokens.denominator == 1 else float(tokens)}

    def __str__(self) -> str:
        if self.share is not None:
            return "all" if self.share == 1 else f"{float(self.share):.1%}"
        return f"{float(self.tokens or 0):.10g}"


_FRACTION = re.compile(r"[0-9]{1,9}/[0-9]{1,9}")
_DECIMAL = re.compile(r"[0-9]{0,9}(\.[0-9]{0,9})?")

DEFAULT_BUDGET = Budget(share=Fraction(1, 9))


def parse_budget(text: str | None, name: str = "--retain") -> Budget:
    """Return the budget that a text says; one ninth where there is none.

    Args:
        text: A number of tokens, a percentage, a fraction, or ``all``.
        name: What it was given as, for the message of an error.

    Raises:
        ValueError: It is anything but a positive number, a percentage up to 100, a fraction up to 1/1, or ``all``.
    """
    if text is None:
        return DEFAULT_BUDGET
    word = text.strip().lower()
    if word == "all":
        return Budget(share=Fraction(1))
    if _FRACTION.fullmatch(word):
        above, below = map(int, word.split("/"))
        if not 0 < above <= below:
            raise ValueError(f"{name} must be above 0 and at most 1 as a fraction, got {text!r:.80}")
        return Budget(share=Fraction(above, below))
    digits = word.removesuffix("%").strip()
    value = parse_decimal(digits)
    if value is None:
        raise ValueError(f"{name} must be a number of tokens (64), a share (1/9 or 11.1%) or all, got {text!r:.80}")
    if word.endswith("%"):
        if not 0 < value <= 100:
            raise ValueError(f"{name} must be above 0 and at most 100 as a percentage, got {text!r:.80}")
        return Budget(share=value / 100)
    if value < 1:
        raise ValueError(
            f"{name} must be at least 1 as a number of tokens (a share is written 11.1%), got {text!r:.80}"
        )
    return Budget(tokens=value)


def parse_decimal(text: str) -> Fraction | None:
    """Return the number that a text is, of at most nine digits on either side of its point; None where it is none."""
    is_one = _DECIMAL.fullmatch(text) and any(character.isdigit() for character in text)
    return Fraction(text) if is_one else None
