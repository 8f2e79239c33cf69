"""What figures and verdict are computed from: shares of attention, rank correlations, effective numbers of tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PERCENTS = 101
"""Points of a cumulative curve: 0, 1, ... 100 % of the tokens."""


def cumulative_share(attention: ArrayLike) -> Floats:
    """Share of the attention that the tokens with most of it hold together.

    Args:
        attention: ``[n]``, not negative, of one image or tile.

    Returns:
        ``[PERCENTS]`` float64: what the top 0, 1, ... 100 % of the tokens hold, in proportion between whole tokens.

    Raises:
        ValueError: There are no tokens, or no attention.
    """
    values = np.sort(np.asarray(attention, dtype=np.float64))[::-1]
    if values.ndim != 1 or not values.sum() > 0:
        raise ValueError(f"attention must be of shape [n] and not all 0, got shape {values.shape}")
    held = np.concatenate([[0.0], values.cumsum() / values.sum()])
    found: Floats = np.interp(np.linspace(0, len(values), PERCENTS), np.arange(len(values) + 1), held)
    return found


def average_ranks(values: ArrayLike) -> Floats:
    """Return ``[n]`` float64: the rank of each value from 1 on; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: Floats = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return ranks


def rank_correlation(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return Spearman's rank correlation, layer by layer: the correlation of average ranks.

    Args:
        first: ``[L, n]``.
        second: ``[L, n]``.

    Returns:
        ``[L]`` float64 in [-1, 1]; 0 where one of the two has the same value everywhere, and so ranks nothing.

    Raises:
        ValueError: The shapes differ, or are no ``[L, n]``.
    """
    pair = np.asarray(first), np.asarray(second)
    if pair[0].ndim != 2 or pair[0].shape != pair[1].shape:
        raise ValueError(f"first, second must be of one shape [L, n], got {pair[0].shape} and {pair[1].shape}")
    left, right = (np.array([average_ranks(row) for row in values]) for values in pair)
    left, right = left - left.mean(1, keepdims=True), right - right.mean(1, keepdims=True)
    scale = np.sqrt((left**2).sum(1) * (right**2).sum(1))
    found: Floats = np.divide((left * right).sum(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return found


def effective_share(attention: ArrayLike) -> Floats:
    """Return over how large a share of the tokens attention is spread: the exponential of its entropy, over their
    number.

    Args:
        attention: ``[L, n]``, not negative; brought to a sum of 1.

    Returns:
        ``[L]`` float64, from 1 / n (all attention on one token) to 1 (the same on every token); 0 where there is none.
    """
    values = np.asarray(attention, dtype=np.float64)
    total = values.sum(1, keepdims=True)
    shares = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: Floats = np.where(total[:, 0] > 0, np.exp(-(shares * logs).sum(1)) / values.shape[1], 0.0)
    return found


def kept_attention(attention: ArrayLike, order_by: ArrayLike, keep: int) -> Floats:
    """Share of the attention that falls on the ``keep`` tokens that come first.

    Args:
        attention: ``[L, n]``, not negative.
        order_by: ``[L, n]``; the smallest come first, of equal ones the lower index.
        keep: How many.

    Returns:
        ``[L]`` float64; 0 where there is no attention.
    """
    values = np.asarray(attention, dtype=np.float64)
    first = np.argsort(np.asarray(order_by), axis=1, kind="stable")[:, :keep]
    total = values.sum(1)
    kept = np.take_along_axis(values, first, axis=1).sum(1)
    found: Floats = np.divide(kept, total, out=np.zeros_like(total), where=total > 0)
    return found
