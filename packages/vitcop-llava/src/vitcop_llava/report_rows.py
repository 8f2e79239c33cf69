"""The rows of a report: what each kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitcop_core import DecoderCut, Method, Plan, VisionCut
from vitcop_core.checks import check_instance, check_int, check_tuple, require
from vitcop_core.plan import plain_title


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
        titles: What the method calls its cuts: first the one before the language model, also where there is none. Empty
            for plain names.

    Raises:
        TypeError: A count is not an integer, ``plan`` is not one, or ``titles`` are not a tuple.
        ValueError: A count is negative, or above 2,147,483,647; or there are not as many titles as cuts, and one.
    """

    images: int
    plan: Plan | None
    text_tokens: int
    newlines: int = 0
    newlines_kept: int = 0
    titles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the counts: they may come from a file."""
        for name in ("images", "text_tokens", "newlines", "newlines_kept"):
            check_int(name, getattr(self, name), 0)
        if self.plan is not None:
            check_instance("plan", self.plan, Plan, "a Plan or None")
        check_tuple("titles", self.titles, "texts")
        wanted = 1 + (0 if self.plan is None else len(self.plan.decoder))
        require(len(self.titles) in (0, wanted), "titles", f"none, or {wanted}", self.titles)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts, in order."""
        if self.plan is None:
            return ()
        cuts = self.plan.decoder
        titles = self.titles or tuple(plain_title(number) for number in range(1 + len(cuts)))
        found = [Stage(title, cut.layer, cut.tokens) for title, cut in zip(titles[1:], cuts, strict=True)]
        if self.plan.entry_tokens < self.plan.visual_tokens:
            found.insert(0, Stage(titles[0], None, self.plan.entry_tokens))
        return tuple(found)


def titles_of(method: Method, plan: Plan | None) -> tuple[str, ...]:
    """Return what a method calls the cuts of a plan of its own, for `RowReport.titles`."""
    return () if plan is None else tuple(method.cut_title(plan, number) for number in range(1 + len(plan.decoder)))


def row_content(row: RowReport) -> dict[str, Any]:
    """Return a row as JSON has it, without what its method knows."""
    return {name: value for name, value in asdict(row).items() if name != "titles"}


def row_of(content: dict[str, Any], method: Method) -> RowReport:
    """Return the row of a method that `row_content` told; its numbers check themselves.

    Raises:
        KeyError, TypeError, ValueError: It is not one, or of another method.
    """
    stored = content["plan"]
    vision = stored["vision"] and VisionCut(tuple(stored["vision"]["keep"]), tuple(stored["vision"]["clusters"]))
    cuts = tuple(DecoderCut(**cut) for cut in stored["decoder"])
    plan = Plan(stored["num_layers"], tuple(stored["units"]), vision or None, cuts)
    row = RowReport(**{**content, "plan": plan, "titles": titles_of(method, plan)})
    # A stage is a word of the method's: one that it would not use itself for as many tokens means nothing.
    known = {cut.stage for cut in method.plan(plan.num_layers, plan.units, images=row.images).decoder}
    if others := sorted({cut.stage for cut in plan.decoder} - known):
        raise ValueError(f"stage must be one of {sorted(known)}, got {others[0]!r:.40}")
    return row
