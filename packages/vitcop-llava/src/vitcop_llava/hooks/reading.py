"""The one read of a prefill: where placeholders stand, what the mask hides, how positions count.

Everything that a prefill has to know of values is in its prompt, which is there before anything is computed. So it is
read as the call opens: the device has little to finish then, and whatever follows from it is arithmetic on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HostPrompt:
    """The prompt of a call, on the host.

    Attributes:
        where: ``[B, L]`` of each kind of input: where its placeholders stand.
        mask: ``[B, past + L]``, what may be attended to; None for everything.
        positions: ``[B, L]``, the caller's position ids; None where there are none.
        origin: The tensors that mask and positions were read from.
        others: How many placeholders there are of kinds that the call brings nothing of; empty for a prompt of
            embeddings.
        grids: How the patches of each kind of input lie, ``[n, 3]``, with the tensor that it was read from; empty where
            they do not come so.
    """

    where: dict[str, Bools]
    mask: Bools | None
    positions: Ints | None
    origin: tuple[Tensor | None, Tensor | None]
    others: dict[str, int] = field(default_factory=dict)
    grids: dict[str, tuple[Tensor, Ints]] = field(default_factory=dict)

    @property
    def attended(self) -> Bools:
        """``[B, L]``: which of the call's own columns may be attended to."""
        whole = next(iter(self.where.values()))
        return np.ones_like(whole) if self.mask is None else self.mask[:, -whole.shape[1] :]

    def count(self, kind: str) -> int:
        """Return how many placeholders of a kind there are."""
        return int(self.where[kind].sum()) if kind in self.where else 0

    def holds(self, counts: Mapping[str, int]) -> bool:
        """Return whether it has so many placeholders of each of these kinds."""
        return all(kind in self.where and self.count(kind) == count for kind, count in counts.items())

    def is_of(self, mask: Tensor | None, positions: Tensor | None) -> bool:
        """Return whether it was read from these tensors."""
        return self.origin[0] is mask and self.origin[1] is positions


def read_prompt(
    placeholders: Mapping[str, Tensor],
    given: Mapping[str, Any],
    token_ids: Mapping[str, int],
    grids: Mapping[str, Tensor] | None = None,
) -> HostPrompt | None:
    """Read what a prefill has to know, in one copy.

    Args:
        placeholders: ``[B, L]`` bool, of each kind.
        given: The call's arguments: ``input_ids`` [B, L], or embeddings; ``attention_mask`` [B, past + L] and
            ``position_ids`` [B or 1, L], or None.
        token_ids: The placeholder of each kind.
        grids: How the patches of each kind lie, ``[n, 3]``; None where they do not come so.

    Returns:
        None where nothing can be read: on a device without values, and while a graph is captured.
    """
    first = next(iter(placeholders.values()))
    if first.device.type == "meta" or (first.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    ids, mask, positions = (given.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    parts = [*placeholders.values()] if ids is None else [ids]
    grids = grids or {}
    tables = [grid.reshape(1, -1) for grid in grids.values()]
    hosted = _read([*parts, *tables, None if mask is None else _as_flags(mask), positions], first)
    found, others = hosted[: len(parts)], dict[str, int]()
    if ids is None:
        held = {kind: part != 0 for kind, part in zip(placeholders, found, strict=True)}
    else:
        held = {kind: found[0] == token_ids[kind] for kind in placeholders}
        others = {kind: int((found[0] == token).sum()) for kind, token in token_ids.items() if kind not in held}
    numbers = (table[0].reshape(-1, 3) for table in hosted[len(parts) : len(parts) + len(tables)])
    read = {kind: (grid, own) for (kind, grid), own in zip(grids.items(), numbers, strict=True)}
    return HostPrompt(held, None if mask is None else hosted[-2] != 0, hosted[-1], (mask, positions), others, read)


def _as_flags(mask: Tensor) -> Tensor:
    """Return a mask of any dtype as one whose zeros survive a cast to integers."""
    return mask != 0 if mask.is_floating_point() else mask


def _read(tensors: list[Tensor | None], like: Tensor) -> list[Any]:
    """Return ``[B or 1, n]`` tensors as int64 arrays of as many rows as ``like`` has, and None as it is."""
    there = [each for each in tensors if each is not None]
    alike = [each.to(device=like.device, dtype=torch.int64).expand(like.shape[0], -1) for each in there]
    table = (alike[0] if len(alike) == 1 else torch.cat(alike, dim=1)).numpy(force=True)
    stops = np.cumsum([each.shape[1] for each in there])[:-1]
    arrays = iter(np.split(table, stops, axis=1))
    return [None if each is None else next(arrays) for each in tensors]
