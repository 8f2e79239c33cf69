"""What prompts cost, pruned and not: visual tokens, multiply-accumulates of the prefill, bytes of the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitcop_core import identity_plan
from vitcop_core.cost import layer_kv_bytes, layer_macs
from vitcop_llava.report import Report, RowReport
from vitcop_llava.tools.model.loading import Loaded


@dataclass
class Costs:
    """Sums over prompts, each counted as if it ran alone: padding is none of its cost.

    Attributes:
        prompts: how many.
        shown: how many of them show a picture or clip.
        tokens, kept: placeholders in those, and how many of them a decoder layer sees on average.
        macs, macs_unpruned: of the language model's prefill.
        cache, cache_unpruned: bytes after the prefill.
    """

    prompts: int = 0
    shown: int = 0
    tokens: int = 0
    kept: float = 0.0
    macs: int = 0
    macs_unpruned: int = 0
    cache: int = 0
    cache_unpruned: int = 0

    def add(self, loaded: Loaded, ids: Tensor, mask: Tensor, report: Report | None) -> None:
        """Count the prompts of a prefill.

        Args:
            loaded: the model.
            ids: ``[B, L]`` int64.
            mask: likewise.
            report: of the prefill, with one row or several (as beams) for each prompt; None for one that was not
                pruned.
        """
        width = ids.shape[1]
        places = torch.isin(ids, torch.tensor([*loaded.parts.token_ids.values()], device=ids.device))
        numbers = zip(mask.sum(1).tolist(), places.sum(1).tolist(), strict=True)
        rows = () if report is None else report.rows
        step = max(1, len(rows) // len(ids))
        for number, (length, shown) in enumerate(numbers):
            if rows and rows[number * step].plan is not None:
                row = rows[number * step]
                row = replace(row, text_tokens=row.text_tokens - (width - length))
            else:
                plan = identity_plan(loaded.parts.shape.num_layers, (shown,)) if shown else None
                row = RowReport(int(shown > 0), plan, length - shown)
            self._add_row(loaded, row)

    def _add_row(self, loaded: Loaded, row: RowReport) -> None:
        shape, size = loaded.parts.shape, loaded.dtype.itemsize
        visual = row.plan.visual_tokens if row.plan else 0
        layers = row.plan.tokens_per_layer if row.plan else (0,) * shape.num_layers
        whole = row.text_tokens + row.newlines + visual
        lengths = [row.text_tokens + row.newlines_kept + tokens for tokens in layers]
        self.prompts += 1
        self.macs += sum(layer_macs(shape, length) for length in lengths)
        self.macs_unpruned += shape.num_layers * layer_macs(shape, whole)
        self.cache += sum(layer_kv_bytes(shape, length, size) for length in lengths)
        self.cache_unpruned += shape.num_layers * layer_kv_bytes(shape, whole, size)
        if row.plan is not None:
            self.shown += 1
            self.tokens += visual + row.newlines
            self.kept += float(row.plan.average_tokens) + row.newlines_kept

    def means(self) -> dict[str, float]:
        """Return means for the results: tokens of a prompt that shows something, the rest of any prompt."""
        shown, prompts = max(1, self.shown), max(1, self.prompts)
        return {
            "visual_tokens": self.tokens / shown,
            "visual_tokens_kept": self.kept / shown,
            "prefill_gmacs": self.macs / prompts / 1e9,
            "prefill_gmacs_unpruned": self.macs_unpruned / prompts / 1e9,
            "cache_mib": self.cache / prompts / 2**20,
            "cache_mib_unpruned": self.cache_unpruned / prompts / 2**20,
        }
