"""The models that lmms-eval runs: ``vitcop``, by messages and by a text with visuals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator  # type: ignore[import-untyped]
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from vitcop_llava.tools.lmms.arguments import Arguments
from vitcop_llava.tools.lmms.costs import Costs
from vitcop_llava.tools.lmms.engine import Answer, Engine, Score
from vitcop_llava.tools.lmms.generation import read_generation
from vitcop_llava.tools.lmms.prompts import Prompt, Turn, render, turn_of, turns_of
from vitcop_llava.tools.model.loading import Loaded

Result = TypeVar("Result")


class _Asked(NamedTuple):
    """A request: what makes its prompt when it is its turn, and what sorts it into a batch."""

    prompt: Callable[[], Prompt]
    length: int
    settings: str


class Vitcop(lmms):  # type: ignore[misc]
    """A model of any family that vitcop prunes, for tasks that give a text and visuals.

    Every keyword is one of ``--model_args``; see `Arguments`. What fails is raised, and ends the run.

    Args:
        loaded: a model that is there already, in place of ``pretrained``.
        batch_size: prompts that run together.
        max_batch_size: takes what lmms-eval passes on, and means nothing.
        device: where the model goes; None for the first GPU, or this process's own.
        **arguments: see `Arguments`.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    is_simple = True

    def __init__(
        self,
        *,
        loaded: Loaded | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self._arguments = Arguments(**arguments)
        self.batch_size = _batch_size(batch_size)
        if device is None or (device == "cuda" and self._world_size > 1):
            device = str(self.accelerator.device) if self._world_size > 1 else "auto"
        method = self._arguments.find_method()  # a mistake there is told before gigabytes are read
        loaded = loaded or self._arguments.load(device)
        self._clipping = self._arguments.clipping(loaded)
        self._engine: Engine | None = Engine(loaded, method, keep_newline=self._arguments.keep_newline)

    @property
    def engine(self) -> Engine:
        """What runs prompts, until `clean`.

        Raises:
            RuntimeError: lmms-eval has cleaned up after a run.
        """
        if self._engine is None:
            raise RuntimeError("the model was let go after a run; make another")
        return self._engine

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.engine.loaded.device

    def clean(self) -> None:
        """Take the hooks off and let go of the model: lmms-eval is done with it, and may need its memory."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        super().clean()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests; the results are in their order."""
        asked = [_Asked(*self._read(request.args)) for request in requests]
        settings = {each.settings: read_generation(json.loads(each.settings)) for each in asked}

        def answer(prompts: list[Prompt], numbers: Sequence[int]) -> list[Answer]:
            return self.engine.answer(prompts, settings[asked[numbers[0]].settings])

        answers, seconds = self._run(asked, answer)
        self._log(sum(each.tokens for each in answers), seconds, len(asked))
        return [
            GenerationResult(each.text, TokenCounts(input_tokens=each.prompt_tokens, output_tokens=each.tokens))
            for each in answers
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Score given answers: mean negative log-likelihood, of which lmms-eval takes the least, and whether each token
        is the likeliest.
        """
        prompt_of = lru_cache(self.batch_size)(self._simple)  # choices of one question share it
        asked, targets = [], []
        for request in requests:
            context, target, doc_to_visual, *where = request.args
            targets.append(target if isinstance(target, str) else str(target(self._doc(*where))))
            asked.append(_Asked(partial(prompt_of, context, doc_to_visual, *where), len(context), ""))

        def score(prompts: list[Prompt], numbers: Sequence[int]) -> list[Score]:
            return self.engine.score(prompts, [targets[number] for number in numbers])

        scores, seconds = self._run(asked, score)
        self._log(0, seconds, len(asked), "loglikelihood_")
        # In this wrapper a pair gets through; by itself it would be made a text of.
        return [GenerationResult((score.loss, score.is_greedy)) for score in scores]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Refuse tasks of several rounds, which go by messages.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("tasks of several rounds go by messages; leave out --force_simple")

    def _read(self, arguments: tuple[Any, ...]) -> tuple[Callable[[], Prompt], int, str]:
        """Return what makes the prompt of a request, how long its text is, and how its answer is generated."""
        context, settings, doc_to_visual, *where = arguments
        return partial(self._simple, context, doc_to_visual, *where), len(context), _key(settings)

    def _simple(self, context: str, doc_to_visual: Callable[[Any], Any] | None, *where: Any) -> Prompt:
        visuals = doc_to_visual(self._doc(*where)) if callable(doc_to_visual) else None
        return self._render([turn_of(context, visuals, self._clipping)])

    def _render(self, turns: Sequence[Turn]) -> Prompt:
        return render(self.engine.loaded.processor, turns, self._arguments.chat_template)

    def _doc(self, doc_id: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _run(
        self, asked: Sequence[_Asked], run: Callable[[list[Prompt], Sequence[int]], list[Result]]
    ) -> tuple[list[Result], float]:
        """Run requests in batches: those of one kind together, the longest first.

        Args:
            asked: the requests.
            run: takes prompts and their numbers among the requests, and gives the results.

        Returns:
            The results in the order of the requests, and the seconds that took.
        """
        started, self.engine.costs = time.perf_counter(), Costs()
        found: dict[int, Result] = {}
        order = sorted(range(len(asked)), key=lambda number: (asked[number].settings, -asked[number].length))
        with tqdm(total=len(asked), desc="vitcop", disable=self.rank != 0) as bar:
            for _, numbers in groupby(order, key=lambda number: asked[number].settings):
                for batch in _batches([*numbers], self.batch_size):
                    results = run([asked[number].prompt() for number in batch], batch)
                    found.update(zip(batch, results, strict=True))
                    bar.update(len(batch))
        return [found[number] for number in range(len(asked))], time.perf_counter() - started

    def _log(self, tokens: int, seconds: float, requests: int, kind: str = "") -> None:
        """Give lmms-eval what goes into its file of results, of this process."""
        means = {f"{kind}{name}": value for name, value in self.engine.costs.means().items()}
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / seconds if seconds else 0.0,
            additional_metrics={"total_requests": requests, **means},
        )


class VitcopChat(Vitcop):
    """The same for tasks that give messages, which is how lmms-eval runs it unless told otherwise."""

    is_simple = False

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer requests of several rounds, each of which the task makes of the answers before."""
        found = []
        for request in requests:
            _, doc_to_messages, settings, *where = request.args
            generation, doc = read_generation(settings), self._doc(*where)
            messages, answers, info = doc_to_messages(doc), list[str](), None
            while messages is not None:
                answers += [each.text for each in self.engine.answer([self._chat(messages)], generation)]
                after = doc_to_messages(
                    doc, round_idx=len(answers), previous_output=[*answers], previous_round_info=info
                )
                messages, is_over, _, info = after if isinstance(after, tuple) else (None, True, None, None)
                messages = None if is_over else messages
            found.append(answers)
        return found

    def _read(self, arguments: tuple[Any, ...]) -> tuple[Callable[[], Prompt], int, str]:
        context, doc_to_messages, settings, *where = arguments
        length = len(context) if isinstance(context, str) else 0
        return lambda: self._chat(doc_to_messages(self._doc(*where))), length, _key(settings)

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        return self._render(turns_of(messages, self._clipping))


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _batch_size(given: int | str) -> int:
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError(f"batch_size must be a positive integer, got {given!r:.80}")
    return int(given)
