"""Training: projector and language model, on the tower's stored features and on clips told in words."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import LlavaNextVideoForConditionalGeneration, LlavaProcessor

from vitcop_llava.tools.demo.language import FIRST_TRAINING_SEED, QUESTIONS_PER_KIND
from vitcop_llava.tools.demo.optimize import descend, optimizer_for, shuffled
from vitcop_llava.tools.demo.packing import IGNORED, Packer
from vitcop_llava.tools.demo.questions import Question
from vitcop_llava.tools.demo.tower import normalized
from vitcop_video.demo.events import FRAMES, EventClip, render_clip, sample_clip
from vitcop_video.demo.questions import KINDS, listing, sample_questions
from vitcop_video.demo.thinning import (
    DEPTHS,
    EVENLY,
    GROUND_FIRST,
    Thinning,
    entering_tokens,
    leaving_order,
    shows_shape,
    thinned_masks,
)
from vitcop_video.processing import ClipProcessor

STAGES = {"evenly": EVENLY, "ground first": GROUND_FIRST}
"""How clips are thinned, stage by stage."""

TURNS = ("told", "seen", "thinned", "thinned")
"""What the steps of training take turns in: clips told in words, whole clips, and clips with tokens left out."""


def clip_features(
    model: LlavaNextVideoForConditionalGeneration, processor: ClipProcessor, clips: int, device: str
) -> Tensor:
    """Return what the projector gets of the first training clips, ``[clips, 8 * tokens, d]`` in float16."""
    found, as_image_demo = [], cast(LlavaProcessor, processor)  # their means and deviations are alike
    with torch.inference_mode():
        for number in tqdm(range(clips), desc="features"):
            clip = sample_clip(FIRST_TRAINING_SEED + number)
            kinds = list(dict.fromkeys(clip.places))  # a frame like the one before it is seen once
            frames = render_clip(clip)[[clip.places.index(kind) for kind in kinds]]
            pixels = normalized(torch.from_numpy(frames).to(device), as_image_demo)
            seen = model.model.vision_tower(pixels, output_hidden_states=True)
            pooled = model.model.vision_resampler(seen.hidden_states[model.config.vision_feature_layer][:, 1:])
            found.append(pooled[[kinds.index(place) for place in clip.places]].flatten(0, 1).half().cpu())
    return torch.stack(found)


class LanguageTrainer:
    """Projector and language model: on stored features, on some of them, and on clips told in words, taking turns."""

    def __init__(
        self,
        model: LlavaNextVideoForConditionalGeneration,
        features: Tensor,
        processor: ClipProcessor,
        args: argparse.Namespace,
    ) -> None:
        self._model, self._features, self._args = model, features, args
        self._processor = cast(LlavaProcessor, processor)  # the packer takes its tokenizer alone
        parts = [model.model.multi_modal_projector, model.model.language_model, model.lm_head]
        self._parameters = [parameter for part in parts for parameter in part.parameters()]

    def train(self, stage: str, steps: int, rate: float, log: Callable[..., None], save: Callable[[], None]) -> None:
        """Run all steps of a stage of `STAGES`, the kinds of `TURNS` one after the other."""
        args, seed = self._args, self._args.seed + 2 * list(STAGES).index(stage)
        optimizer, schedule = optimizer_for(self._parameters, rate, steps, min(150, steps // 10 + 1))
        order, rng = shuffled(len(self._features), seed + 1), np.random.default_rng(seed)
        started = time.monotonic()
        for step in tqdm(range(steps), desc=stage):
            clips = [(pick := next(order), sample_clip(FIRST_TRAINING_SEED + pick)) for _ in range(args.batch)]
            turn = TURNS[step % len(TURNS)]
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
                thinning = STAGES[stage] if turn == "thinned" else None
                logits, wanted = self._told(clips, rng) if turn == "told" else self._seen(clips, thinning, rng)
            loss = functional.cross_entropy(logits.float(), wanted)
            descend(loss, optimizer, schedule, self._parameters)
            if step % 50 < len(TURNS) or step == steps - 1:
                right = (logits.argmax(-1) == wanted).float().mean().item()
                seconds = time.monotonic() - started
                log(stage=stage, step=step, turn=turn, loss=loss.item(), tokens_right=right, seconds=seconds)
            if step % args.save_every == args.save_every - 1 or step == steps - 1:
                save()

    def _seen(
        self, clips: list[tuple[int, EventClip]], thinning: Thinning | None, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the logits and labels of the answers to questions about clips."""
        features = self._features[torch.tensor([pick for pick, _ in clips])]
        if thinning is not None:
            grid = math.isqrt(features.shape[1] // FRAMES)
            order = leaving_order(np.stack([shows_shape(clip, grid) for _, clip in clips]), thinning, rng)
            index = entering_tokens(order, rng.uniform(*thinning.entering), each_frame=rng.random() < 0.5)
            features = features.gather(1, index[:, :, None].expand(-1, -1, features.shape[2]))
            order = np.take_along_axis(order, index.numpy(), axis=1)
        count = features.shape[1]
        packer = self._packer(count)
        first = packer.first_visual
        tokens, positions, labels, mask = packer.batch([_asked(clip, rng) for _, clip in clips])
        if thinning is None:
            positions, masks = squeezed(positions, first, count // FRAMES, rng), [mask]
        else:
            masks = thinned_masks(mask, first, order, thinning, rng)
        projected = self._model.model.multi_modal_projector(features.to(self._args.device).float())
        embeds = self._model.model.language_model.embed_tokens(tokens.to(self._args.device))
        embeds = torch.cat([embeds[:, :first], projected, embeds[:, first + count :]], dim=1)
        return self._scored(embeds, positions, labels, masks)

    def _told(self, clips: list[tuple[int, EventClip]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the same about clips told in words."""
        rows = [_asked(clip, rng) for _, clip in clips]
        tokens, positions, labels, mask = self._packer(0).batch(rows, [row[-1].answer for row in rows])
        embeds = self._model.model.language_model.embed_tokens(tokens.to(self._args.device))
        return self._scored(embeds, positions, labels, [mask])

    def _packer(self, visual_tokens: int) -> Packer:
        return Packer(self._processor, visual_tokens)

    def _scored(self, embeds: Tensor, positions: Tensor, labels: Tensor, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return one mask for all layers, or one for each of three parts: before, between and after `DEPTHS`."""
        language, device = self._model.model.language_model, self._args.device
        positions, labels = positions.to(device), labels.to(device)
        parts = [mask.to(device) for mask in masks]
        rotary, hidden = language.rotary_emb(embeds, positions), embeds
        for number, layer in enumerate(language.layers):
            part = parts[sum(number >= depth for depth in DEPTHS) if len(parts) > 1 else 0]
            hidden = layer(hidden, attention_mask=part, position_ids=positions, position_embeddings=rotary)
        scored = labels != IGNORED
        return self._model.lm_head(language.norm(hidden)[scored]), labels[scored]


def squeezed(positions: Tensor, first: int, tokens: int, rng: np.random.Generator) -> Tensor:
    """Return the positions ``[b, length]`` with each row's clip squeezed at random, and the text after it moved up.

    As :func:`vitcop_llava.tools.demo.language.warped` does for images, and for its reason. Half of the rows are left as
    they are, a quarter is squeezed evenly, and in the last quarter some frames are squeezed more than others. The first
    frame's tokens start at ``first``, and each frame has ``tokens``; none is left out.
    """
    rows = len(positions)
    share = np.where(rng.random((rows, 1)) < 0.5, 1.0, rng.uniform(0.15, 1.0, size=(rows, 1)))
    uneven = (rng.random((rows, 1)) < 0.5) & (share < 1)
    share = share * np.where(uneven, rng.uniform(0.4, 1.6, size=(rows, FRAMES)), 1.0)
    steps = torch.from_numpy((rng.random((rows, FRAMES, tokens)) < share[:, :, None]).reshape(rows, -1))
    steps[:, 0] = True
    moved = positions.clone()
    count = FRAMES * tokens
    moved[:, first : first + count] = first + steps.cumsum(1) - 1
    moved[:, first + count :] -= count - steps.sum(1, keepdim=True)
    return moved


def _asked(clip: EventClip, rng: np.random.Generator) -> list[Question]:
    asked = [question for kind in KINDS for question in sample_questions(clip, kind, QUESTIONS_PER_KIND, rng)]
    return [*asked, listing(clip)]
