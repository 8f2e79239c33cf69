"""The rows of a report: what each kept."""

from __future__ import annotations

from dataclasses import dataclass

from vitcop_core import Plan
from vitcop_core.checks import check_instance, check_int


@dataclass(frozen=True)
class Stage:
    """One cut of a row: ``layer`` is None before the language model; ``tokens`` is what it left."""

    name: str
    layer: int | None
    tokens: int


@dataclass(frozen=True)
class RowReport:
    """One row of the batch.

    Attributes:
        images: Its images and clips.
        plan: What was done with them; None for a row without images, which runs unpruned.
        text_tokens: Its columns that are not placeholders, padding included.
        newlines: Newline tokens of its images in the unpruned model.
        newlines_kept: How many of them stay, in every layer.

    Raises:
        TypeError: A count is no integer, or ``plan`` none.
        ValueError: A count is negative, or above 2,147,483,647.
    """

    images: int
    plan: Plan | None
    text_tokens: int
    newlines: int = 0
    newlines_kept: int = 0

    def __post_init__(self) -> None:
        """Check the counts: they may come from a file."""
        for name in ("images", "text_tokens", "newlines", "newlines_kept"):
            check_int(name, getattr(self, name), 0)
        if self.plan is not None:
            check_instance("plan", self.plan, Plan, "a Plan or None")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts, in order."""
        if self.plan is None:
            return ()
        found = []
        is_staged = all(cut.stage in ("co_prune", "top_tokens") for cut in self.plan.decoder)
        if self.plan.entry_tokens < self.plan.visual_tokens:
            is_staged = is_staged and (self.plan.num_clusters == 0 or len(self.plan.decoder) > 0)
            found.append(Stage("Stage I" if is_staged else "Vision cut", None, self.plan.entry_tokens))
        if not is_staged:  # another method than ViTCoP, whose cuts have no names
            for order, cut in enumerate(self.plan.decoder, start=1):
                found.append(Stage(f"Cut {order}", cut.layer, cut.tokens))
            return tuple(found)
        names = {"co_prune": "Stage II", "top_tokens": "Stage III"}
        for order, cut in enumerate(self.plan.decoder):
            name = "Stage II" if order == 0 and len(self.plan.decoder) > 1 else names[cut.stage]
            found.append(Stage(name, cut.layer, cut.keep))
        return tuple(found)
