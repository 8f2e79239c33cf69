"""How an answer is generated: what tasks set in ``generation_kwargs``, as arguments of transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

DEFAULT_TOKENS = 1024
"""How long an answer may be where the task does not say."""

_PLAIN = ("max_new_tokens", "num_beams", "repetition_penalty", "no_repeat_ngram_size", "length_penalty")
_SAMPLING = ("temperature", "top_p", "top_k")
_STOPS = ("until", "stop_sequences")
# For other models or other loops; nothing that a model here generates depends on them.
_IGNORED = ("image_aspect_ratio", "visual_cot", "max_agentic_steps")


@dataclass(frozen=True)
class Generation:
    """Settings of answers.

    Attributes:
        arguments: of `generate`.
        until: texts that end an answer and are not part of it.
        skip_special_tokens: whether special tokens are left out of the text.
    """

    arguments: Mapping[str, Any]
    until: tuple[str, ...] = ()
    skip_special_tokens: bool = True

    @property
    def beams(self) -> int:
        """How many beams are searched."""
        return int(self.arguments.get("num_beams", 1))


def read_generation(given: Mapping[str, Any]) -> Generation:
    """Return what a task's ``generation_kwargs`` say. An answer is sampled where the temperature is above zero.

    Raises:
        ValueError: there is a setting that is not known here.
    """
    known = {*_PLAIN, *_SAMPLING, *_STOPS, *_IGNORED, "do_sample", "skip_special_tokens"}
    if unknown := sorted({*given} - known):
        raise ValueError(f"generation_kwargs must be among {', '.join(sorted(known))}, got {', '.join(unknown)}")
    until = [text for name in _STOPS for text in _texts(name, given.get(name))]
    temperature = given.get("temperature")
    samples = temperature != 0 and bool(given.get("do_sample", temperature is not None))
    arguments = {"max_new_tokens": DEFAULT_TOKENS, "num_beams": 1, "do_sample": samples}
    arguments |= {name: given[name] for name in _PLAIN if given.get(name) is not None}
    # None also takes what the checkpoint sets for sampling out of a greedy answer.
    arguments |= {name: given.get(name) if samples else None for name in _SAMPLING if samples <= (name in given)}
    return Generation(arguments, tuple(until), bool(given.get("skip_special_tokens", True)))


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else [*(value or ())]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a text or a list of texts, got {value!r:.80}")
    return [text for text in texts if text]


def cut(text: str, until: Sequence[str]) -> str:
    """Return a text up to the first of the texts that end it."""
    places = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class Until(StoppingCriteria):
    """Ends a row as soon as its answer holds one of some texts.

    Args:
        tokenizer: of the model.
        until: the texts.
        start: columns of the prompt.
        skip_special_tokens: whether special tokens are left out of the answer.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], start: int, skip_special_tokens: bool) -> None:
        self._decode, self._until, self._start, self._skip = tokenizer.decode, until, start, skip_special_tokens
        # A character has at most four tokens.
        self._reach = 4 * max(map(len, until)) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return ``[B]`` bool: which rows are at their end."""
        done = [self._is_over(row) for row in input_ids[:, self._start :].tolist()]
        return torch.tensor(done, device=input_ids.device)

    def _is_over(self, row: list[int]) -> bool:
        # The end of a long answer costs less to look at, and the whole is asked only where it holds a stop.
        return self._holds(row[-self._reach :]) and self._holds(row)

    def _holds(self, tokens: list[int]) -> bool:
        text = self._decode(tokens, skip_special_tokens=self._skip)
        return any(stop in text for stop in self._until)


class Forced(LogitsProcessor):
    """Makes every row generate given tokens.

    Args:
        tokens: ``[B, W]`` int64.
        start: columns of the prompt.
    """

    def __init__(self, tokens: Tensor, start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return ``[B, V]``: zero for the token of this step, minus infinity for all others."""
        token = self._tokens[:, input_ids.shape[1] - self._start, None]
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)
