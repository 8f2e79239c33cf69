"""Values as messages show them: never longer than a line or two, and never an error of their own."""

from dataclasses import Field, fields, is_dataclass
from fractions import Fraction
from reprlib import Repr
from typing import Any

# Python refuses to write integers of more than 4,300 digits, and nobody reads this many.
_DIGITS = 40

# log10(2) as a ratio of integers: a float of the size of the number might not exist.
_LOG_2 = (30103, 100000)


class _Shown(Repr):
    """``repr`` of bounded length; a tensor is its shape, which the host knows without asking the device."""

    def __init__(self) -> None:
        super().__init__()
        self.maxtuple = self.maxlist = self.maxset = self.maxfrozenset = self.maxdict = self.maxarray = 20
        self.maxstring = self.maxother = 200
        self.maxlevel = 4

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, int) and not isinstance(x, bool):
            return _integer(x)
        if isinstance(x, Fraction):
            return f"Fraction({_integer(x.numerator)}, {_integer(x.denominator)})"
        if type(x).__name__ == "Tensor" and hasattr(x, "shape"):
            return f"a tensor of shape {[*x.shape]}"
        return super().repr1(x, level)


def _integer(value: int) -> str:
    digits = value.bit_length() * _LOG_2[0] // _LOG_2[1]
    return repr(value) if digits < _DIGITS else f"{'-' if value < 0 else ''}about 10**{digits}"


def shortened(text: str, limit: int = 500) -> str:
    """Return a text of at most so many characters: of a longer one the beginning, and dots."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def told(error: BaseException, *, with_kind: bool = False) -> str:
    """Return what a message says of another package's error: a line of bounded length, in that error's own words.

    Args:
        error: What was raised.
        with_kind: Whether its class stands before its words in any case, and not only where they are a key alone.
    """
    kind, said = type(error).__name__, " ".join(str(error).split())
    with_kind = with_kind or isinstance(error, KeyError | AssertionError | AttributeError)
    return shortened(f"{kind}: {said}" if said and with_kind else said or kind)


def shown(value: object) -> str:
    """Return what a message says of a value that it refuses.

    Args:
        value: Anything. Of a long sequence the first items are shown, of a long text or number its size.
    """
    return shortened(_Shown().repr(value))


def kind_of(value: object) -> str:
    """Return what a message says of a value of the wrong kind: its class, or that it is one."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def shown_settings(value: object) -> str:
    """Return what a message says of a dataclass: its name, with those of its settings that are not its defaults."""
    if isinstance(value, type):
        return kind_of(value)
    if not is_dataclass(value):
        return shown(value)
    given = [each.name for each in fields(value) if each.repr and not _is_default(value, each)]
    return f"{type(value).__name__}({', '.join(f'{name}={getattr(value, name)!r}' for name in given)})"


def _is_default(value: object, setting: Field[Any]) -> bool:
    """Return whether a setting has its default; what cannot be compared with it has not."""
    try:
        return bool(getattr(value, setting.name) == setting.default)
    except Exception:  # of somebody else's comparison
        return False


def shown_with_type(value: object) -> str:
    """Return the same, and of what type the value is."""
    return f"{shown(value)} ({type(value).__name__})"
