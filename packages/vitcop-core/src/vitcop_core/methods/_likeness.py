"""How alike the tokens of a unit are: cosines of their features."""

import torch
from torch import Tensor
from torch.nn import functional

from vitcop_core import ops
from vitcop_core.methods._vision import take_patches
from vitcop_core.ops._library import accumulator

_HELD = 2**25
"""The most cosines that are held, of all units together: 128 MiB."""

_BLOCK = 2**22
"""Likewise of one product, which is wider than what is held."""

_UNKNOWN = 2.0
"""Stands for the cosine of features that are not numbers: more alike than any."""

_GRAIN = 2.0**24
"""Cosines are rounded to multiples of one part in this. Rounded as floats, those near 0 would keep their noise."""


class Likeness:
    """The cosine of every two tokens of a unit, rounded: what is equal in exact arithmetic is equal here.

    The cosines of all pairs are held where there are few enough of them. Otherwise each is computed when it is asked
    for, and memory grows with the tokens and not with their square.
    """

    def __init__(self, features: Tensor) -> None:
        """Take the features, ``[C, n, d]`` floating, of any length; a feature of length 0 is at right angles to all."""
        directions = functional.normalize(features.to(accumulator(features)), dim=2)
        units, self._size, _ = features.shape
        self._step = max(_BLOCK // max(units * self._size, 1), 1)
        self._is_held = units * self._size**2 <= _HELD
        self._source = directions  # or, where they are held, all cosines
        if self._is_held:
            self._source = torch.cat(
                [_cosines(rows, directions) for rows in directions.split(self._step, dim=1)], dim=1
            )
            self._source.diagonal(dim1=1, dim2=2).fill_(torch.inf)

    def of(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return ``[C, a, b]`` float32: the cosines of tokens at ``rows`` [C, a] and others at ``columns`` [C, b]."""
        if not self._is_held:
            return _cosines(take_patches(self._source, rows), take_patches(self._source, columns))
        places = rows.unsqueeze(2) * self._size + columns.unsqueeze(1)
        return self._source.flatten(1).gather(1, places.flatten(1)).view(places.shape)

    def to_all(self, token: Tensor) -> Tensor:
        """Return ``[C, n]`` float32: the cosines of one token of each unit, ``[C, 1]``, and all; inf with itself."""
        found = self._source.gather(1, token.unsqueeze(2).expand(-1, -1, self._source.shape[2]))
        return found[:, 0] if self._is_held else _cosines(found, self._source)[:, 0].scatter(1, token, torch.inf)

    def nearest(self, valid: Tensor) -> Tensor:
        """Return ``[C, n]`` float32: the largest cosine of each token and another one; -inf where there is none.

        Args:
            valid: ``[C, n]`` bool, the tokens that count.
        """
        places, found = torch.arange(self._size, device=valid.device), list[Tensor]()
        for own, rows in zip(places.split(self._step), self._source.split(self._step, dim=1), strict=True):
            block = rows if self._is_held else _cosines(rows, self._source)
            others = valid.unsqueeze(1) & (places != own.unsqueeze(1))
            found.append(block.masked_fill(~others, -torch.inf).amax(2))
        return torch.cat(found, dim=1)


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``[C, a, b]`` float32 of directions ``[C, a, d]`` and ``[C, b, d]``."""
    cosines = ops.product(rows, columns.mT).mul_(_GRAIN).round_().div_(_GRAIN)
    return cosines.float().nan_to_num(nan=_UNKNOWN)
