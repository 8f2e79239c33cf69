"""A pruned model that answers many questions, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from vitcop_core import Method
from vitcop_core.checks import check_instance, check_int
from vitcop_llava.families.grids import GRIDS
from vitcop_llava.pruner import Pruner, prune
from vitcop_llava.tools.batch.rows import MEDIA, Outcome, Row, columns_of, rows_of
from vitcop_llava.tools.comparison.costs import CostCounter, sizes_of, tilings_of
from vitcop_llava.tools.media.images import decode_image, image_size, read_image
from vitcop_llava.tools.media.video_support import Clip, Sampling, is_video, need_support
from vitcop_llava.tools.model.answer import Medium, generate_batch, prepare_batch
from vitcop_llava.tools.model.loading import Loaded, load

_FRAMES = 8
"""Of a clip, where nothing says how many."""


@dataclass(frozen=True, eq=False)
class _Opened:
    """A row whose files are read."""

    media: list[Medium]
    question: str


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows that are ready to run, by number.

    Attributes:
        opened: Those whose files could be read.
        inputs: Of these; None where they could not be prepared together.
        outcomes: Of the others.
        error: Why there are no inputs.
    """

    opened: dict[int, _Opened]
    inputs: Any
    outcomes: dict[int, Outcome]
    error: str | None


class Answerer:
    """A pruned model that answers questions in batches: columns in, columns out.

    The model is loaded and pruned once, when this is made, and stays pruned until `close`. Instances are what
    ``ray.data.Dataset.map_batches`` takes as a callable class, and `vitcop batch` runs them in its processes.

    Answers are greedy, and each is what the question gets alone. A question that cannot be answered has an error in its
    row, and the others go on.

    Args:
        model: A local folder or a hub id, None for the demo model, or a model that is loaded already.
        method: What it is pruned with; None runs it unpruned.
        batch_size: How many questions run at a time. It is halved where memory is too small for so many.
        max_new_tokens: How long an answer may be.
        device: As for `vitcop_llava.tools.model.loading.load`; of a loaded model it is left alone.
        dtype: Likewise.
        sampling: Which frames of a video are looked at; None for the usual.

    Raises:
        TypeError: An argument is of the wrong type, or the model's family is not supported.
        ValueError: A number is out of range, the budget does not fit the model, there is no such model or device, or
            the tokenizer cannot pad and ``batch_size`` is above 1.
        vitcop_llava.tools.model.loading.HubError: The hub cannot be reached.
    """

    def __init__(
        self,
        model: str | Path | Loaded | None,
        method: Method | None,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 64,
        device: str = "auto",
        dtype: str = "auto",
        sampling: Sampling | None = None,
    ) -> None:
        if method is not None:
            check_instance("method", method, Method, "a method or None")
        check_int("batch_size", batch_size, 1)
        check_int("max_new_tokens", max_new_tokens, 1)
        if not isinstance(model, Loaded):
            model = load(None if model is None else str(model), device=device, dtype=dtype)
        if batch_size > 1 and model.processor.tokenizer.pad_token is None:
            raise ValueError(f"batch_size must be 1, as the model's tokenizer has no padding token, got {batch_size}")
        self._loaded, self._longest, self._sampling = model, max_new_tokens, sampling or Sampling()
        self._most, self._preparing = batch_size, Lock()
        self._counter = CostCounter(method, model.parts, 1)
        self._pruner: Pruner | None = None if method is None else prune(model.model, method)
        self._is_looked_at = method is None

    def close(self) -> None:
        """Take the pruning off the model."""
        if self._pruner is not None:
            self._pruner.remove()
            self._pruner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a batch of columns, of any number of rows.

        Args:
            columns: Lists or arrays with an entry a row. ``question``: texts. ``image``: names of files, contents of
                image files (bytes), Pillow images, or arrays ``[H, W, 3]`` uint8; or instead ``images``: lists of
                these. A file with a video's name is read as a video. Other columns are handed on.

        Returns:
            The columns, without those of the images, and with ``answer`` (None where there is an error), ``error``
            (None where there is an answer), ``visual_tokens`` (of its images) and ``average_tokens`` (how many of them
            a layer sees).

        Raises:
            ValueError: A column is missing, or they differ in length.
        """
        rows, found = rows_of(columns), dict[int, Outcome]()
        for outcomes in self.stream(dict(enumerate(rows))):
            found |= outcomes
        kept = {name: values for name, values in columns.items() if name not in MEDIA}
        return kept | columns_of([found[number] for number in range(len(rows))])

    def stream(
        self, rows: Mapping[int, Row], on_batch: Callable[[list[int]], None] | None = None
    ) -> Iterator[dict[int, Outcome]]:
        """Yield the outcomes of rows by their numbers, batch by batch: rows of a batch are alike in visual tokens and
        text.

        Args:
            rows: By numbers of the caller's.
            on_batch: Hears which rows are read next, to run after those before them.
        """
        sizes = {number: (self._extent(row), len(str(row.question))) for number, row in rows.items()}
        order = sorted(rows, key=sizes.__getitem__)
        # While a batch runs, the next one's files are read: on a GPU that takes a thread of the host nothing.
        with ThreadPoolExecutor(1, "vitcop-batch") as reader:
            coming: Future[_Batch] | None = None
            while order or coming is not None:
                ready = coming
                coming, numbers, order = None, order[: self._most], order[self._most :]
                if numbers:
                    if on_batch is not None:
                        on_batch(numbers)
                    coming = reader.submit(self._ready, {number: rows[number] for number in numbers})
                if ready is not None:
                    yield self._finish(ready.result())

    def _ready(self, rows: Mapping[int, Row]) -> _Batch:
        """Read the files of a batch, and prepare what the model takes."""
        outcomes, opened = dict[int, Outcome](), dict[int, _Opened]()
        for number, row in rows.items():
            try:
                opened[number] = self._open(row)
            except Exception as error:  # whatever it is, it is this row's
                outcomes[number] = Outcome(error=_told(error))
        try:
            return _Batch(opened, self._prepare([*opened.values()]) if opened else None, outcomes, None)
        except Exception as error:  # of a row, or all
            return _Batch(opened, None, outcomes, _told(error))

    def _finish(self, batch: _Batch) -> dict[int, Outcome]:
        found = self._answer([*batch.opened.values()], batch.inputs, batch.error)
        return batch.outcomes | dict(zip(batch.opened, found, strict=True))

    def _answer(self, opened: Sequence[_Opened], inputs: Any = None, error: str | None = None) -> list[Outcome]:
        """Return the outcomes of rows; those of a batch that fails run in halves."""
        if not opened:
            return []
        if error is None and len(opened) <= self._most:
            try:
                return self._run(opened, self._prepare(opened) if inputs is None else inputs)
            except torch.OutOfMemoryError as failed:
                error, self._most = _told(failed), max(1, len(opened) // 2)
            except Exception as failed:  # of a row, or all: running fewer tells
                error = _told(failed)
        if len(opened) == 1:
            return [Outcome(error=error)]
        half = len(opened) // 2
        return [*self._answer(opened[:half]), *self._answer(opened[half:])]

    def _prepare(self, opened: Sequence[_Opened]) -> Any:
        with self._preparing:  # the tokenizer's padding is a state of its own
            return prepare_batch(self._loaded, [(each.media, each.question) for each in opened])

    def _run(self, opened: Sequence[_Opened], inputs: Any) -> list[Outcome]:
        tokens = self._count(opened, inputs)
        answers = generate_batch(self._loaded, inputs, self._longest)
        if self._pruner is not None and not self._is_looked_at:
            self._is_looked_at = True
            _ = self._pruner.report  # making it warns of settings that do not fit the model's features
        return [Outcome(answer, None, *counts) for answer, counts in zip(answers, tokens, strict=True)]

    def _count(self, opened: Sequence[_Opened], inputs: Mapping[str, Any]) -> list[tuple[int, float]]:
        """Return the visual tokens of each row, and how many of them a layer sees.

        Raises:
            ValueError: The budget cannot be met for one.
        """
        name, start, found = GRIDS["image"], 0, list[tuple[int, float]]()
        for each in opened:
            own = {name: inputs[name][start : start + len(each.media)]} if name in inputs else {}
            start += len(each.media)
            plan = self._counter.row(sizes_of(each.media, own, self._loaded.parts)).plan
            assert plan is not None  # every row has an image
            found.append((plan.visual_tokens, float(plan.average_tokens)))
        return found

    def _open(self, row: Row) -> _Opened:
        if not isinstance(row.question, str) or not row.question.strip():
            raise ValueError(f"question must be a text that is not empty, got {row.question!r:.80}")
        if not isinstance(row.media, list | tuple | np.ndarray) or len(row.media) == 0:
            raise ValueError(f"images must be a list of at least one, got {row.media!r:.80}")
        opened = _Opened([self._open_medium(each) for each in row.media], str(row.question))
        if self._loaded.parts.squares is None:  # a budget that cannot be met, before others are prepared with this row
            self._counter.row(sizes_of(opened.media, {}, self._loaded.parts))
        return opened

    def _open_medium(self, given: Any) -> Medium:
        if isinstance(given, str | Path):
            path = Path(given)
            return need_support().read_clip(path, self._sampling) if is_video(path) else read_image(path)
        if isinstance(given, bytes):
            return decode_image(given)
        if isinstance(given, np.ndarray):
            if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
                raise ValueError(f"image must be an array [H, W, 3] of uint8, got {given.shape} of {given.dtype}")
            return Image.fromarray(given)
        if isinstance(given, Image.Image):
            return given.convert("RGB")
        if isinstance(given, Clip):
            return given
        kind = type(given).__name__
        raise TypeError(f"image must be a file's name or content, a Pillow image or an array, got a {kind}")

    def _extent(self, row: Row) -> int:
        """Return how many visual tokens a row has, or what grows with them; 0 for one that cannot be answered."""
        parts = self._loaded.parts
        try:
            if parts.anyres is None and parts.squares is None and parts.video is None:
                return len(row.media)
            sizes = [self._size(each) for each in row.media]
            if parts.squares is not None:  # the processor scales them, and keeps their order
                return sum(height * width for *_, height, width in sizes)
            return sum(tiling.tokens for tiling in tilings_of(tuple(sizes), parts))
        except Exception:  # it is told of when the row is answered
            return 0

    def _size(self, given: Any) -> tuple[int, ...]:
        """Return height and width of an image, before them the frames of a clip; of a file without decoding it."""
        if isinstance(given, Clip):
            return tuple(given.frames.shape[:3])
        if isinstance(given, Image.Image):
            return given.height, given.width
        if isinstance(given, np.ndarray):
            return tuple(given.shape[:2])
        if isinstance(given, str | Path) and is_video(Path(given)):
            asked = self._sampling
            return (len(asked.indices) if asked.indices else asked.frames or _FRAMES), 1, 1
        return image_size(given)


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
