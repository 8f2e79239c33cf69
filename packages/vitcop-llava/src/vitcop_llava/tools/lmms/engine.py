"""Runs prompts in batches on a model, pruned or as it is: answers, and likelihoods of given ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from vitcop_core import Method
from vitcop_llava.pruner import prune
from vitcop_llava.tools.lmms.costs import Costs
from vitcop_llava.tools.lmms.generation import Forced, Generation, Until, cut
from vitcop_llava.tools.lmms.prompts import Prompt
from vitcop_llava.tools.media.video_support import Clip
from vitcop_llava.tools.model.answer import check_media, encode
from vitcop_llava.tools.model.loading import Loaded


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: up to what ends it.
        prompt_tokens: of the prompt, placeholders among them.
        tokens: how many were generated, the closing one included.
    """

    text: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Score:
    """How likely an answer is.

    Attributes:
        loss: mean negative log-likelihood of its tokens.
        is_greedy: whether each of them is the likeliest.
    """

    loss: float
    is_greedy: bool


class Engine:
    """A model under pruning, or as it is, for prompts that come in batches.

    Args:
        loaded: the model.
        method: None for the model as it is: nothing of it is touched then.
        keep_newline: see :func:`vitcop_llava.prune`.

    Raises:
        ValueError: the method does not fit the model.
    """

    def __init__(self, loaded: Loaded, method: Method | None, *, keep_newline: bool = False) -> None:
        self.loaded, self.costs = loaded, Costs()
        self.pruner = None if method is None else prune(loaded.model, method, keep_newline=keep_newline)

    def close(self) -> None:
        """Take the hooks off the model."""
        if self.pruner is not None:
            self.pruner.remove()

    def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[Answer]:
        """Answer prompts, together as far as their clips are of one length.

        Raises:
            ValueError: a prompt cannot be asked.
        """
        found: list[Answer | None] = [None] * len(prompts)
        for numbers in _alike(prompts):
            answers = self._answer([prompts[number] for number in numbers], generation)
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = answer
        return [answer for answer in found if answer is not None]

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Score]:
        """Score one answer to each prompt, on the numbers that generating it would see.

        Whatever is pruned is chosen by the prompt alone, as in generation: an answer is fed token by token.

        Raises:
            ValueError: a prompt cannot be asked, or an answer has no token.
        """
        found: list[Score | None] = [None] * len(prompts)
        for numbers in _alike(prompts):
            scores = self._score([prompts[number] for number in numbers], [answers[number] for number in numbers])
            for number, score in zip(numbers, scores, strict=True):
                found[number] = score
        return [score for score in found if score is not None]

    def _answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[Answer]:
        inputs, tokenizer = self._inputs(prompts), self.loaded.processor.tokenizer
        start, skip = inputs["input_ids"].shape[1], generation.skip_special_tokens
        criteria = StoppingCriteriaList()
        if generation.until and generation.beams == 1:  # a search of beams is not over when one of them is
            criteria.append(Until(tokenizer, generation.until, start, skip))
        output = self._generate(inputs, generation.beams, **generation.arguments, stopping_criteria=criteria)
        endings = {tokenizer.pad_token_id, tokenizer.eos_token_id}
        found = []
        lengths = inputs["attention_mask"].sum(1).tolist()
        for row, length in zip(output[:, start:].tolist(), lengths, strict=True):
            text = cut(tokenizer.decode(row, skip_special_tokens=skip), generation.until)
            tokens = next((place + 1 for place, token in enumerate(row) if token in endings), len(row))
            found.append(Answer(text, length, tokens))
        return found

    def _score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Score]:
        inputs, tokenizer = self._inputs(prompts), self.loaded.processor.tokenizer
        # What precedes an answer belongs to the prompt: tokenizers of words write the space themselves.
        wanted = [tokenizer(answer.strip(), add_special_tokens=False)["input_ids"] for answer in answers]
        for answer, tokens in zip(answers, wanted, strict=True):
            if not tokens:
                raise ValueError(f"answer must have a token, got {answer!r:.80}")
        most, ids = max(map(len, wanted)), inputs["input_ids"]
        padded = torch.tensor([tokens + [tokens[-1]] * (most - len(tokens)) for tokens in wanted], device=ids.device)
        output = self._generate(
            inputs,
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([Forced(padded, ids.shape[1])]),
            output_logits=True,
            return_dict_in_generate=True,
        )
        found = []
        logits = torch.stack(output.logits, 1)  # before anything that a generation config does to them
        for row, tokens in enumerate(wanted):
            own = logits[row, : len(tokens)].float().log_softmax(-1)
            target = padded[row, : len(tokens), None]
            loss, greedy = -own.gather(1, target).mean(), own.argmax(-1, keepdim=True) == target
            found.append(Score(loss.item(), bool(greedy.all())))
        return found

    def _generate(self, inputs: Any, beams: int = 1, **how: Any) -> Any:
        tokenizer, config = self.loaded.processor.tokenizer, self.loaded.model.generation_config
        if config.pad_token_id is None:
            padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            how.setdefault("pad_token_id", padding)
        with torch.inference_mode():
            output = self.loaded.model.generate(**inputs, **how)
        report = None if self.pruner is None else self.pruner.report
        self.costs.add(self.loaded, inputs["input_ids"], inputs["attention_mask"], report)
        return output

    def _inputs(self, prompts: Sequence[Prompt]) -> Any:
        media = [prompt.media for prompt in prompts]
        check_media(self.loaded, media)
        inputs = encode(self.loaded, [prompt.text for prompt in prompts], media)
        if "attention_mask" not in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return inputs


def _alike(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Yield numbers of prompts whose clips are of the same lengths: an unpruned model takes no others together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        lengths = {len(each.frames) for each in prompt.media if isinstance(each, Clip)}
        groups.setdefault(tuple(sorted(lengths)), []).append(number)
    yield from groups.values()
