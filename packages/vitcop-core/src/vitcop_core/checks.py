"""Errors that name the argument, what was expected, and what came.

Nothing here looks at the values of a tensor: that would make the host wait for the device.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from vitcop_core.shown import shown, shown_with_type

#: The largest count or size: products of a few of them are still sizes that a tensor can have.
MAX_INT = 2**31 - 1

#: Layers of a language model: what is counted layer by layer has to come to an end.
MAX_LAYERS = 10_000

_TINY, _HUGE = 1e-300, 1e300

# Of the fractions that floats are read as, and how near to them they come: a float32 is still what it was written as.
_DENOMINATOR, _PRECISION = 1_000_000, 10_000_000


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise ``ValueError`` unless ``condition`` holds.

    Args:
        condition: A Python bool, known without looking at tensor values.
        name: The argument at fault.
        expected: What it must be, completing "must be ...".
        got: What came.

    Raises:
        ValueError: ``condition`` is false.
    """
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {shown(got)}")


def plain(value: Any) -> Any:
    """Return numbers of numpy and its like as Python's own, also inside of tuples; anything else as it is.

    Theirs have a fixed width, in which the arithmetic of costs overflows without a word.
    """
    if type(value) is tuple:
        return tuple(plain(item) for item in value)
    if isinstance(value, bool | int | Fraction) or type(value) is float:
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def plain_fields(instance: Any) -> None:
    """Replace the numbers in the fields of a frozen dataclass that is being made by :func:`plain` ones."""
    for each in fields(instance):
        object.__setattr__(instance, each.name, plain(getattr(instance, each.name)))


def check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int if it is an integer in ``[low, high]``; a bool is not an integer.

    Args:
        name: The argument's name.
        value: An int, or an integer of numpy.
        low: The least.
        high: The most; None for :data:`MAX_INT`.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: It lies outside the range.
    """
    expected = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if not isinstance(value, int):
        value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {expected}, got {shown_with_type(value)}")
    require(low <= value and (high is None or value <= high), name, expected, value)
    require(high is not None or value <= MAX_INT, name, f"an integer from {low} to {MAX_INT}", value)
    return value


def check_positive(name: str, value: object, at_most: int | None = None) -> Fraction:
    """Return ``value`` as an exact fraction if it is a finite positive number.

    A float stands for the simplest fraction that it could have been written for: ``1 / 3`` becomes exactly one third
    and ``0.07`` seven hundredths. Otherwise a product that should be a whole number falls just short of it, and its
    floor loses a token.

    Args and errors are those of :func:`check_above_zero`.
    """
    number = check_above_zero(name, value, at_most)
    return _simplest(number) if isinstance(number, float) else Fraction(number)


def check_above_zero(name: str, value: object, at_most: int | None = None) -> int | float | Fraction:
    """Return ``value`` as a number of Python's own if it is a finite positive one.

    Args:
        name: The argument's name.
        value: An int, float or Fraction, or a number of numpy; a bool is not a number.
        at_most: Upper bound, inclusive.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: It is not finite, not positive, above ``at_most``, or beyond what a float can hold.
    """
    expected = "a positive number" if at_most is None else f"a number in (0, {at_most}]"
    number = _number(name, value, expected)
    finite = not isinstance(number, float) or math.isfinite(number)
    require(finite and number > 0 and (at_most is None or number <= at_most), name, expected, number)
    # Beyond these it could not be turned into a float, or only into 0.
    require(_TINY <= number <= _HUGE, name, "a number from 1e-300 to 1e300", number)
    return number


def check_finite(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite number.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: It is not finite, or beyond what a float can hold.
    """
    number = _number(name, value, "a finite number")
    require(-_HUGE <= number <= _HUGE, name, "a finite number, from -1e300 to 1e300", number)
    return float(number)


def _number(name: str, value: object, expected: str) -> int | float | Fraction:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{name} must be {expected}, got {shown_with_type(value)}")
    return value


def _simplest(value: float) -> Fraction:
    """Return the simplest fraction that a positive float may have been written for."""
    exact = Fraction(value)
    simple = exact.limit_denominator(_DENOMINATOR)
    if abs(simple - exact) * _PRECISION <= exact:
        return simple
    # Of a number so small that this is far off, or 0, the decimals that it is written with.
    return Fraction(repr(value))


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    require(isinstance(value, str) and value in choices, name, f"one of {', '.join(map(repr, choices))}", value)


def check_text(name: str, value: object) -> None:
    """Raise unless ``value`` is a text with something in it.

    Raises:
        TypeError: ``value`` is not a text.
        ValueError: It is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {shown_with_type(value)}")
    require(value != "", name, "a text that is not empty", value)


def check_flag(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown_with_type(value)}")


def check_tuple(name: str, value: object, expected: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a tuple.

    Args:
        name: The argument's name.
        value: What came.
        expected: What of, completing "must be a tuple of ...".
    """
    if not isinstance(value, tuple):
        raise TypeError(f"{name} must be a tuple of {expected}, got {shown_with_type(value)}")


def check_instance(name: str, value: object, kind: type, expected: str) -> None:
    """Raise ``TypeError`` unless ``value`` is one of a class, which ``expected`` puts in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got {shown_with_type(value)}")


def check_sequence(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a list, tuple or other sequence."""
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence, got {type(value).__name__}")


def check_tensor(name: str, value: object, shape: Sequence[int | str], like: Tensor | None = None) -> Tensor:
    """Return ``value`` if it is a tensor of the given shape.

    Args:
        name: The argument's name.
        value: What the caller passed.
        shape: A number for an extent that is fixed, a letter for one that is free.
        like: A tensor whose device ``value`` must share.

    Raises:
        TypeError: ``value`` is not a tensor.
        ValueError: Its shape or device differs.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    fits = value.dim() == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    # Messages are made only when needed: making them is what torch.compile could not trace.
    if not fits:
        raise ValueError(f"{name} must be of shape [{', '.join(map(str, shape))}], got {list(value.shape)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {value.device}")
    return value


def check_floating(name: str, value: object, shape: Sequence[int | str], like: Tensor | None = None) -> Tensor:
    """Check as :func:`check_tensor` does, and raise ``TypeError`` unless the dtype is a floating one."""
    tensor = check_tensor(name, value, shape, like)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {tensor.dtype}")
    return tensor


def check_integral(name: str, value: object, shape: Sequence[int | str], like: Tensor | None = None) -> Tensor:
    """Check as :func:`check_tensor` does, and raise ``TypeError`` unless the dtype is ``torch.int64``."""
    tensor = check_tensor(name, value, shape, like)
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64, got {tensor.dtype}")
    return tensor


def check_rows(batch: Tensor, **rows: Tensor | None) -> None:
    """Check one integer for each row of ``batch``, or None.

    Args:
        batch: A tensor with the rows in its first dimension.
        **rows: By name, ``[B]`` int64 or None.

    Raises:
        TypeError: One is no int64 tensor.
        ValueError: One has another shape or device.
    """
    for name, values in rows.items():
        if values is not None:
            check_integral(name, values, (batch.shape[0],), like=batch)
