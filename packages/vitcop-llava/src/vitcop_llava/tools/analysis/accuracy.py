"""Figure 2b: how many questions a model answers right on the top k tokens by CLS attention alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from PIL import Image
from tqdm import tqdm

from vitcop_core import ViTCoP
from vitcop_llava.hooks.planning import BudgetError
from vitcop_llava.pruner import prune
from vitcop_llava.tools.comparison.matching import is_right
from vitcop_llava.tools.model.answer import generate, prepare
from vitcop_llava.tools.model.loading import Loaded


@dataclass(frozen=True)
class Asked:
    """A question with the answers that count as right; ``open_images`` gives the pictures that come before it."""

    open_images: Callable[[], list[Image.Image]]
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """Right answers on a share of the visual tokens.

    Attributes:
        share: Percent of the tokens of each image or tile, which go into the language model and stay there.
        right: How many answers were right.
        unreachable: Why the share cannot be kept of one of the images, where it cannot; ``right`` is then 0.
    """

    share: float
    right: int
    unreachable: str | None = None


@dataclass(frozen=True)
class Accuracy:
    """Right answers of the unpruned model, and on each share of its tokens.

    Attributes:
        questions: How many were asked.
        unpruned: How many the unpruned model answered right.
        scores: In the order of the shares asked for.
    """

    questions: int
    unpruned: int
    scores: tuple[Score, ...]

    @property
    def reached(self) -> list[Score]:
        """The scores of shares that could be kept."""
        return [score for score in self.scores if score.unreachable is None]

    def relative(self, score: Score) -> float | None:
        """Return right answers over those of the unpruned model; None where that has none."""
        return score.right / self.unpruned if self.unpruned else None

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {"scores": [asdict(score) for score in self.scores]}


def stage_one_alone(share: Fraction) -> ViTCoP:
    """Return ViTCoP with Stage I alone: of each image the top ``share`` of the tokens by CLS attention, cut no further.

    Raises:
        ValueError: The share is not in (0, 1].
    """
    return ViTCoP(ratios=(share, share, share))


def measure_accuracy(
    loaded: Loaded, asked: Sequence[Asked], shares: Sequence[Fraction], max_new_tokens: int
) -> Accuracy:
    """Ask every question unpruned and on each share of the tokens; answers are greedy.

    Raises:
        ValueError: There are no questions, a share is not in (0, 1], or a question cannot be asked.
    """
    if not asked:
        raise ValueError("asked must be at least one question, got none")
    methods = [None, *(stage_one_alone(share) for share in shares)]
    right, unreachable = [0] * len(methods), dict[int, str]()
    for item in tqdm(asked, desc="questions", file=sys.stderr, disable=not sys.stderr.isatty()):
        inputs = prepare(loaded, item.open_images(), item.question)
        for number, method in enumerate(methods):
            if number in unreachable:
                continue
            try:
                answer = _answer(loaded, inputs, method, max_new_tokens)
            except BudgetError as error:
                unreachable[number] = str(error)
                continue
            right[number] += is_right(answer, item.answers)
    scores = (
        Score(float(100 * share), 0 if number in unreachable else right[number], unreachable.get(number))
        for number, share in enumerate(shares, start=1)
    )
    return Accuracy(len(asked), right[0], tuple(scores))


def _answer(loaded: Loaded, inputs: Any, method: ViTCoP | None, max_new_tokens: int) -> str:
    if method is None:
        return generate(loaded, inputs, max_new_tokens).text
    try:
        pruner = prune(loaded.model, method)
    except ValueError as error:  # the model's parts were checked when it was loaded, so what is wrong is the share
        raise BudgetError(str(error)) from error
    with pruner:
        return generate(loaded, inputs, max_new_tokens).text
