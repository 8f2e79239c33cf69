"""Stages two and three of training: projector and language model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vitcop_llava.tools.demo.optimize import descend, optimizer_for, shuffled
from vitcop_llava.tools.demo.packing import IGNORED, Packer
from vitcop_llava.tools.demo.questions import KINDS, Question, listing, sample_questions
from vitcop_llava.tools.demo.scenes import Scene, sample_scene

FIRST_TRAINING_SEED = 1_000_000
"""Scenes for training start here; lower seeds are held out for evaluation."""

QUESTIONS_PER_KIND = 2


class LanguageTrainer:
    """Projector and language model on stored features, and on scenes told in words."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        features: Tensor,
        processor: LlavaProcessor,
        args: argparse.Namespace,
    ) -> None:
        self._model, self._features, self._args = model, features, args
        self._packer = Packer(processor, features.shape[1])
        parts = [model.model.multi_modal_projector, model.model.language_model, model.lm_head]
        self._parameters = [parameter for part in parts for parameter in part.parameters()]

    def train(self, stage: str, steps: int, rate: float, told_every: int, log: Callable[..., None]) -> None:
        """Train stages two and three. Each ``told_every``-th step has scenes told in words (0: none has)."""
        seed = self._args.seed + told_every
        optimizer, schedule = optimizer_for(self._parameters, rate, steps, min(150, steps // 10 + 1))
        order, rng = shuffled(len(self._features), seed + 1), np.random.default_rng(seed)
        started = time.monotonic()
        for step in tqdm(range(steps), desc=stage):
            picks = [next(order) for _ in range(self._args.batch)]
            told = told_every > 0 and step % told_every == 0
            logits, wanted = self._told(picks, rng) if told else self._seen(picks, rng)
            loss = functional.cross_entropy(logits, wanted)
            descend(loss, optimizer, schedule, self._parameters)
            if step % 50 <= (told_every > 0) or step == steps - 1:
                right = (logits.argmax(-1) == wanted).float().mean().item()
                seconds = time.monotonic() - started
                log(stage=stage, step=step, told=told, loss=loss.item(), tokens_right=right, seconds=seconds)

    def _seen(self, picks: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the logits and labels of the answers to questions about images."""
        rows = [_asked(sample_scene(FIRST_TRAINING_SEED + pick), rng) for pick in picks]
        first, count = self._packer.first_visual, self._features.shape[1]
        tokens, positions, labels, mask = self._packer.batch(rows)
        positions = warped(positions, first, count, rng)
        features = self._features[torch.tensor(picks)].to(self._args.device).float()
        projected = self._model.model.multi_modal_projector(features)
        embeds = self._model.model.language_model.embed_tokens(tokens.to(self._args.device))
        embeds = torch.cat([embeds[:, :first], projected, embeds[:, first + count :]], dim=1)
        return self._scored(embeds, positions, labels, mask)

    def _told(self, picks: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the same about scenes told in words."""
        rows = [_asked(sample_scene(FIRST_TRAINING_SEED + pick), rng) for pick in picks]
        tokens, positions, labels, mask = self._packer.batch(rows, [row[-1].answer for row in rows])
        embeds = self._model.model.language_model.embed_tokens(tokens.to(self._args.device))
        return self._scored(embeds, positions, labels, mask)

    def _scored(self, embeds: Tensor, positions: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        positions, labels, mask = (part.to(self._args.device) for part in (positions, labels, mask))
        hidden = self._model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        scored = labels != IGNORED
        return self._model.lm_head(hidden[scored]), labels[scored]


def warped(positions: Tensor, first: int, count: int, rng: np.random.Generator) -> Tensor:
    """Return the positions ``[b, length]`` with each row's image squeezed at random, and the text after it moved up.

    A language model that has read text of every length knows that a place in the picture is no fixed distance from the
    question. One that has only ever seen this prompt would learn the distances by heart, and where a shape stands from
    them instead of from the tower's features. Every other row is left as it is; no token is ever dropped.
    """
    rows = positions.shape[0]
    share = np.where(rng.random(rows) < 0.5, 1.0, rng.uniform(0.15, 1.0, size=rows))
    steps = torch.from_numpy(rng.random((rows, count)) < share[:, None])
    steps[:, 0] = True
    squeezed = positions.clone()
    squeezed[:, first : first + count] = first + steps.cumsum(1) - 1
    squeezed[:, first + count :] -= count - steps.sum(1, keepdim=True)
    return squeezed


def _asked(scene: Scene, rng: np.random.Generator) -> list[Question]:
    asked = [q for kind in KINDS for q in sample_questions(scene, kind, QUESTIONS_PER_KIND, rng)]
    return [*asked, listing(scene)]
