"""Which budgets can be met, in the unit that the caller used, and the error that says so."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from vitcop_core.shown import shown

# Decimals of a bound in tokens and of one in shares, at first and at most.
_TOKENS, _SHARES, _MOST = 0, 4, 12


class Sample(NamedTuple):
    """What a budget is for.

    Attributes:
        tokens: Its visual tokens.
        images: Its images.
    """

    tokens: int
    images: int

    @property
    def each(self) -> Fraction:
        """Visual tokens of an image, on average."""
        return Fraction(self.tokens, self.images)

    @property
    def text(self) -> str:
        """The same for a message."""
        return _text(self.each, 2)


class Reach(NamedTuple):
    """Which budgets a method can meet for a sample, beside all of its tokens.

    Attributes:
        fits: Whether a share of all tokens can be met, asked of those up to ``most``. What is above one that can be met
            can be met too.
        most: The largest share; 1 where there is no limit but all tokens.
        how: By which settings, completing "for FastV ...".
        remedy: What moves the bounds, a sentence; empty where nothing does.
    """

    fits: Callable[[Fraction], bool]
    most: Fraction = Fraction(1)
    how: str = ""
    remedy: str = ""


def layers_reach(least: Fraction, layers: Sequence[int], num_layers: int) -> Reach:
    """Return all budgets from a share on, of a method that cuts before these layers."""
    places = [str(layer) for layer in layers]
    at = f"layers {', '.join(places[:-1])} and {places[-1]}" if len(places) > 1 else f"layer {places[0]}"
    remedy = ". Other layers move this bound."
    return Reach(lambda share: share >= least, how=f" cutting before {at} of {num_layers}", remedy=remedy)


def unreachable(method: Any, sample: Sample, reach: Reach) -> ValueError:
    """Return the error of a budget that cannot be met.

    What it names as bounds can be met, and the next whole token, or ten-thousandth, outside of them cannot.

    Args:
        method: With ``retained_tokens`` or ``retention_ratio``.
        sample: What it was planned for.
        reach: Which budgets could be.
    """
    kind = type(method).__name__ + reach.how
    if method.retained_tokens is not None:
        every = f"the {sample.text} visual tokens of an image"
        found = _bounds(reach, sample.each, _TOKENS)
        expected = f"all of {every}, as {kind} can meet nothing less"
        if found is not None:
            least, most = found
            expected = f"at least {_text(least)} of {every} for {kind}"
            if most is not None:
                expected = f"from {_text(least)} to {_text(most)} of {every}, or all of them, for {kind}"
        return _error("retained_tokens", expected, method.retained_tokens, reach.remedy)
    found = _bounds(reach, Fraction(1), _SHARES)
    expected = f"1, as {kind} can meet nothing less"
    if found is not None:
        least, most = found
        expected = f"at least {_share(least)} for {kind}"
        if most is not None:
            expected = f"from {_share(least)} to {_share(most)}, or 1, for {kind}"
    return _error("retention_ratio", expected, method.retention_ratio, reach.remedy)


def _error(name: str, expected: str, asked: int | float | Fraction, remedy: str) -> ValueError:
    came = f"{float(asked):.6g}" if isinstance(asked, Fraction) else shown(asked)
    return ValueError(f"{name} must be {expected}, got {came}{remedy}")


def _share(share: Fraction) -> str:
    return f"{_text(share)} ({_text(100 * share)}%)"


def _text(number: Fraction, places: int = _MOST) -> str:
    """Write in decimals, rounded down."""
    whole, rest = divmod(number.numerator * 10**places // number.denominator, 10**places)
    decimals = f"{rest:0{places}d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else f"{whole}"


def _bounds(reach: Reach, everything: Fraction, decimals: int) -> tuple[Fraction, Fraction | None] | None:
    """Return the least and the most that can be met, in the caller's unit; None for no most, and where nothing can be
    met.
    """
    for places in range(decimals, _MOST + 1):
        unit = Fraction(1, 10**places)
        # The first step past all that is less than everything, and then past the least.
        stop = math.floor(reach.most * everything / unit)
        if reach.most == 1 and stop * unit == everything:
            stop -= 1
        low, high = 0, stop
        if high < 1 or not reach.fits(high * unit / everything):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reach.fits(middle * unit / everything) else (middle, high)
        return high * unit, None if reach.most == 1 else stop * unit
    return None
