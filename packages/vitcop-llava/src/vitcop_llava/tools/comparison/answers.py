"""The answers of all variants to all questions, kept in a file that grows as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vitcop_core.journal import Journal, lines_of, partial_path
from vitcop_llava.pruner import Pruner, prune
from vitcop_llava.tools.comparison.costs import CostCounter, Sizes, sizes_of
from vitcop_llava.tools.comparison.questions import Fault, Item
from vitcop_llava.tools.comparison.variants import Variant
from vitcop_llava.tools.media.video_support import Sampling
from vitcop_llava.tools.model.answer import Medium, generate_batch, prepare, prepare_batch
from vitcop_llava.tools.model.loading import Loaded

MAX_BYTES = 4 * 2**30
"""Of all answers."""


@dataclass(frozen=True)
class Answered:
    """A question that was asked.

    Attributes:
        item: The question.
        sizes: Of its images and clips.
        text_tokens: Tokens of its prompt that stand for none of these.
        said: What each variant answered, by name; a variant whose budget cannot be met for it is missing.
    """

    item: Item
    sizes: Sizes
    text_tokens: int
    said: Mapping[str, str]


class AnswerFile:
    """Answers as JSON lines: first what was asked of what, then a line for each question.

    The file gets its name when it is `finish`ed; until then its lines are in ``NAME.partial``.

    Args:
        path: The file.
        header: What identifies the run.
        batches: The questions as they are asked; what an interruption left of a batch is asked again.
        resume: Take over what an earlier run of the same header wrote, if there is one.
        fits: Whether the results of a batch can be what this run would have found; others are asked again.

    Raises:
        ValueError: What is there is of another run.
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        batches: Sequence[Sequence[Item]],
        *,
        resume: bool,
        fits: Callable[[Sequence[Answered | Fault]], bool] = lambda results: True,
    ) -> None:
        written = _read(path, header) if resume else {}
        self._lines = {
            item.number: written[item.number]
            for batch in batches
            if all(item.number in written for item in batch)
            and fits([_restored(written[item.number], item) for item in batch])
            for item in batch
        }
        self._journal = Journal(path, [dict(header), *self._lines.values()])

    def found(self, items: Sequence[Item]) -> list[Answered | Fault] | None:
        """Return the results of a batch; None where it was not asked yet."""
        if items[0].number not in self._lines:
            return None
        return [_restored(self._lines[item.number], item) for item in items]

    def add(self, results: Sequence[Answered | Fault]) -> None:
        """Append the results of a batch, on the disk when this returns."""
        self._journal.add(*map(_stored, results))

    def finish(self) -> None:
        """Give the file its name: all answers are in it, in the order of the questions."""
        header, *lines = lines_of(self._journal.partial, MAX_BYTES)
        self._journal.finish([header, *sorted(lines, key=lambda line: line["number"])])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.close()


def _read(path: Path, header: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    found = next((each for each in (partial_path(path), path) if each.exists()), None)
    first, *lines = (lines_of(found, MAX_BYTES) if found else None) or [None]
    if first is None:  # nothing was begun, or the run ended before its first line was written
        return {}
    if first != json.loads(json.dumps(header)):
        raise ValueError(
            f"resume must go on with the same settings, questions and versions, got {found} of another run"
        )
    return {line["number"]: line for line in lines if _is_result(line)}


def _is_result(line: Any) -> bool:
    """Return whether a line of a file of answers is what `_stored` makes: whoever had the file may have changed it."""
    if not isinstance(line, dict) or type(line.get("number")) is not int:
        return False
    if "error" in line:
        return isinstance(line["error"], str)
    sizes, said = line.get("sizes"), line.get("said")
    are_counts = isinstance(sizes, list) and all(isinstance(size, list) and _are_counts(size) for size in sizes)
    has_answers = isinstance(said, dict) and all(isinstance(answer, str) for answer in said.values())
    return are_counts and has_answers and _are_counts([line.get("text_tokens")])


def _are_counts(numbers: Sequence[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 2**31 for number in numbers)


def _stored(result: Answered | Fault) -> dict[str, Any]:
    if isinstance(result, Fault):
        return {"number": result.number, "error": result.error}
    item = result.item
    about = {"images": [str(path) for path in item.images]} if item.images else {"scene": item.scene}
    asked = {"number": item.number, "id": item.key, "kind": item.kind, **about, "question": item.question}
    size = {"sizes": result.sizes, "text_tokens": result.text_tokens}
    return asked | {"accepted": item.answers, **size, "said": dict(result.said)}


def _restored(line: dict[str, Any], item: Item) -> Answered | Fault:
    if "error" in line:
        return Fault(item.number, line["error"])
    return Answered(item, tuple(map(tuple, line["sizes"])), line["text_tokens"], line["said"])


class Asker:
    """A model, and the variants that answer.

    Args:
        loaded: The model.
        variants: Variants that fit it.
        max_new_tokens: Longest answer.
        sampling: Which frames of a video are looked at; None for the usual.
    """

    def __init__(
        self, loaded: Loaded, variants: Sequence[Variant], max_new_tokens: int, sampling: Sampling | None = None
    ) -> None:
        self._loaded, self._longest, self._sampling = loaded, max_new_tokens, sampling or Sampling()
        self._looked_at = set[Variant]()
        self._counters = {variant: CostCounter(variant.method, loaded.parts, 1) for variant in variants}

    def open(self, item: Item) -> list[Medium]:
        """Return the images and clips of a question; scenes in the size that the vision tower sees.

        Raises:
            TypeError, ValueError: A file cannot be used.
        """
        # Scenes are of the demo model, whose tower has one size.
        side: int = getattr(self._loaded.parts.vision_tower.config, "image_size", 0)
        return item.open(side, self._sampling)

    def could_have_found(self, results: Sequence[Answered | Fault]) -> bool:
        """Return whether every answer of a batch is by the variants that fit its sizes, and by no others."""
        answered = [result for result in results if isinstance(result, Answered)]
        if not all(len(each.sizes) == max(1, len(each.item.images)) for each in answered):  # a scene is a picture
            return False
        try:
            names = {
                variant.name
                for variant, counter in self._counters.items()
                if all(_can_plan(counter, each.sizes) for each in answered)
            }
        except Exception:  # sizes of no picture, in whatever way
            return False
        return all(names == {*each.said} for each in answered)

    def answer(self, items: Sequence[Item]) -> list[Answered | Fault]:
        """Ask every variant the questions, as one batch; those that cannot be asked are faults."""
        opened, inputs, faults = self._prepare(items)
        if not opened:
            return faults
        placeholders = sum((inputs["input_ids"] == token).sum(1) for token in self._loaded.parts.token_ids.values())
        text = (inputs["attention_mask"].sum(1) - placeholders).tolist()
        said: list[dict[str, str]] = [{} for _ in opened]
        for variant, counter in self._counters.items():
            if all(_can_plan(counter, sizes) for _, sizes in opened):
                for answers, answer in zip(said, self._generate(inputs, variant), strict=True):
                    answers[variant.name] = answer
        done = [
            Answered(item, sizes, tokens, answers)
            for (item, sizes), tokens, answers in zip(opened, text, said, strict=True)
        ]
        return sorted([*done, *faults], key=_number)

    def _prepare(self, items: Sequence[Item]) -> tuple[list[tuple[Item, Sizes]], Any, list[Answered | Fault]]:
        """Return the questions that can be asked, with the sizes of what they are about; their inputs; the others."""
        opened, faults = list[tuple[Item, Sizes]](), list[Answered | Fault]()
        asked: list[tuple[list[Medium], str]] = []
        for item in items:
            try:
                media, inputs = self.open(item), {}
                if item.images:  # one that cannot be asked must not take its batch along
                    inputs = prepare(self._loaded, media, item.question)
                sizes = sizes_of(media, inputs, self._loaded.parts)
            except Exception as error:  # whatever it is, it is this question's
                faults.append(Fault(item.number, str(error) or type(error).__name__))
                continue
            opened.append((item, sizes))
            asked.append((media, item.question))
        return opened, prepare_batch(self._loaded, asked) if asked else None, faults

    def _generate(self, inputs: Any, variant: Variant) -> list[str]:
        with self.pruning(variant) as pruner:
            answers = generate_batch(self._loaded, inputs, self._longest)
            if pruner is not None and variant not in self._looked_at:
                self._looked_at.add(variant)
                _ = pruner.report  # making it warns of settings that do not fit the model's features
        return answers

    def pruning(self, variant: Variant) -> AbstractContextManager[Pruner | None]:
        """Run the model as the variant says while inside."""
        return nullcontext() if variant.method is None else prune(self._loaded.model, variant.method)


def _number(result: Answered | Fault) -> int:
    return result.number if isinstance(result, Fault) else result.item.number


def _can_plan(counter: CostCounter, sizes: Sizes) -> bool:
    try:
        counter.row(sizes)
    except ValueError:
        return False
    return True


def ask_all(asker: Asker, batches: Sequence[Sequence[Item]], file: AnswerFile) -> Iterator[list[Answered | Fault]]:
    """Yield the results batch by batch, those that the file has already among them, each after it is in the file."""
    for batch in batches:
        results = file.found(batch)
        if results is None:
            results = asker.answer(batch)
            file.add(results)
        yield results
