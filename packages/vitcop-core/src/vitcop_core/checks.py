"""Errors that name the argument, what was expected, and what came.

Nothing here looks at the values of a tensor: that would make the host wait for the device.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor


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
        raise ValueError(f"{name} must be {expected}; got {got!r}")


def check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is an integer in ``[low, high]``; a bool is not an integer.

    Raises:
        TypeError: ``value`` is no integer.
        ValueError: It lies outside the range.
    """
    expected = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {expected}; got {value!r} ({type(value).__name__})")
    require(low <= value and (high is None or value <= high), name, expected, value)
    return value


def check_positive(name: str, value: object, at_most: int | None = None) -> Fraction:
    """Return ``value`` as an exact fraction if it is a finite positive number.

    A float stands for the simplest fraction that it could have been written for: ``1 / 3`` becomes exactly one third
    and ``0.07`` seven hundredths. Otherwise a product that should be a whole number falls just short of it, and its
    floor loses a token.

    Args:
        name: The argument's name.
        value: An int, float or Fraction; a bool is not a number.
        at_most: Upper bound, inclusive.

    Raises:
        TypeError: ``value`` is no number.
        ValueError: It is not finite, not positive, or above ``at_most``.
    """
    expected = "a positive number" if at_most is None else f"a number in (0, {at_most}]"
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{name} must be {expected}; got {value!r} ({type(value).__name__})")
    finite = not isinstance(value, float) or math.isfinite(value)
    require(finite and value > 0 and (at_most is None or value <= at_most), name, expected, value)
    return Fraction(value).limit_denominator(1_000_000) if isinstance(value, float) else Fraction(value)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    require(value in choices, name, f"one of {', '.join(map(repr, choices))}", value)


def check_flag(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r} ({type(value).__name__})")


def check_sequence(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a list, tuple or other sequence."""
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence; got {type(value).__name__}")


def check_tensor(name: str, value: object, shape: Sequence[int | str], like: Tensor | None = None) -> Tensor:
    """Return ``value`` if it is a tensor of the given shape.

    Args:
        name: The argument's name.
        value: What the caller passed.
        shape: A number for an extent that is fixed, a letter for one that is free.
        like: A tensor whose device ``value`` must share.

    Raises:
        TypeError: ``value`` is no tensor.
        ValueError: Its shape or device differs.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")
    fits = value.dim() == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    # Messages are made only when needed: making them is what torch.compile could not trace.
    if not fits:
        raise ValueError(f"{name} must be of shape [{', '.join(map(str, shape))}]; got {list(value.shape)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}; got {value.device}")
    return value


def check_floating(name: str, value: object, shape: Sequence[int | str], like: Tensor | None = None) -> Tensor:
    """As :func:`check_tensor`, and raise ``TypeError`` unless its dtype is a floating one."""
    tensor = check_tensor(name, value, shape, like)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype; got {tensor.dtype}")
    return tensor


def check_integral(name: str, value: object, shape: Sequence[int | str], like: Tensor | None = None) -> Tensor:
    """As :func:`check_tensor`, and raise ``TypeError`` unless its dtype is ``torch.int64``."""
    tensor = check_tensor(name, value, shape, like)
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64; got {tensor.dtype}")
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
