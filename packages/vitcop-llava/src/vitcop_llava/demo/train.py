"""Trains the demo model from nothing: ``python -m vitcop_llava.demo.train --out FOLDER``.

Two stages. First the vision tower, on what stands under each patch and, for the CLS token, on what the scene holds: CLS
has to read the shapes, because its attention is what Stage I ranks by. Then projector and language model, on the
tower's stored features: ten questions and a listing of the scene follow each image, each seeing the image and itself
alone (as when it is asked alone), so that an image is encoded once for all of them. The listing is what teaches the
model to bind colours, shapes and places to each other.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vitcop_llava.demo.build import PATCH_SIZE, demo_processor, initialised_model, save_demo
from vitcop_llava.demo.labels import PATCH_CLASSES, PRESENCE, patch_labels, presence
from vitcop_llava.demo.packing import IGNORED, Packer
from vitcop_llava.demo.questions import KINDS, Question, listing, sample_questions
from vitcop_llava.demo.scenes import MAX_SHAPES, Scene, render, sample_scene

FIRST_TRAINING_SEED = 1_000_000
"""Scenes for training start here; lower seeds are held out for evaluation."""

QUESTIONS_PER_KIND = 2


def _rendered(arguments: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    seed, grid = arguments
    scene = sample_scene(seed)
    pixels = np.asarray(render(scene, grid * PATCH_SIZE))
    return pixels, patch_labels(scene, grid).astype(np.uint8), presence(scene)


def render_all(count: int, grid: int, workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Renders the training scenes: pixels ``[n, side, side, 3]`` uint8, patch labels and presence."""
    jobs = [(FIRST_TRAINING_SEED + k, grid) for k in range(count)]
    side = grid * PATCH_SIZE
    pixels = torch.empty((count, side, side, 3), dtype=torch.uint8)
    labels = torch.empty((count, grid * grid, 5), dtype=torch.uint8)
    found = torch.empty((count, PRESENCE))
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(_rendered, jobs, chunksize=64)
        for k, (picture, label, present) in enumerate(tqdm(results, total=count, desc="rendering")):
            pixels[k] = torch.from_numpy(picture)
            labels[k] = torch.from_numpy(label)
            found[k] = torch.from_numpy(present)
    return pixels, labels, found


def normalised(pixels: Tensor, processor: LlavaProcessor) -> Tensor:
    """uint8 ``[n, side, side, 3]`` to the float32 ``[n, 3, side, side]`` that the image processor makes of it."""
    mean = torch.tensor(processor.image_processor.image_mean, device=pixels.device)
    std = torch.tensor(processor.image_processor.image_std, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def optimizer_for(
    parameters: list[nn.Parameter], rate: float, steps: int, warmup: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a linear warm-up and a cosine to a hundredth of the rate."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class TowerHeads(nn.Module):
    """Read-outs that exist during training alone: dense ones on the selected feature, a global one on CLS."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.ModuleDict({name: nn.Linear(width, count) for name, count in PATCH_CLASSES.items()})
        self.center = nn.Linear(width, 1)
        self.present = nn.ModuleList([nn.Linear(width, PRESENCE) for _ in range(2)])
        self.count = nn.Linear(width, MAX_SHAPES + 1)

    def loss(self, selected: Tensor, pooled: Tensor, labels: Tensor, found: Tensor) -> Tensor:
        """``selected`` [b, 1 + n, d] is the feature layer, CLS first; ``pooled`` [b, d] the tower's last CLS."""
        cls, patches = selected[:, 0], selected[:, 1:]
        total = torch.zeros((), device=selected.device)
        for column, (name, head) in enumerate(self.dense.items()):
            weight = torch.ones(PATCH_CLASSES[name], device=selected.device)
            weight[0] = 0.3
            logits = head(patches).flatten(0, 1)
            scale = 2.0 if name == "mark" else 1.0  # the finest detail, and the last to be learnt
            total = total + scale * functional.cross_entropy(logits, labels[..., column].flatten(), weight=weight)
        center = functional.binary_cross_entropy_with_logits(
            self.center(patches)[..., 0], labels[..., 4].float(), pos_weight=torch.tensor(5.0, device=selected.device)
        )
        total = total + center
        for head, row in zip(self.present, (cls, pooled), strict=True):
            total = total + 4 * functional.binary_cross_entropy_with_logits(head(row), found)
        shapes = labels[..., 4].sum(dim=1)
        return total + 0.3 * functional.cross_entropy(self.count(cls), shapes)

    @torch.no_grad()
    def accuracy(self, selected: Tensor, labels: Tensor) -> dict[str, float]:
        """Share of the patches under a shape that each dense read-out gets right."""
        shaped = labels[..., 0] > 0
        right = {}
        for column, (name, head) in enumerate(self.dense.items()):
            guess = head(selected[:, 1:]).argmax(-1)
            right[name] = (guess == labels[..., column])[shaped].float().mean().item()
        return right


def train_tower(
    model: LlavaForConditionalGeneration,
    scenes: tuple[Tensor, Tensor, Tensor],
    processor: LlavaProcessor,
    args: argparse.Namespace,
    log: Callable[..., None],
) -> None:
    """Stage one: the vision tower on dense labels under each patch and presence labels on CLS."""
    device, tower = args.device, model.model.vision_tower
    heads = TowerHeads(tower.config.hidden_size).to(device)
    optimizer, schedule = optimizer_for(
        [*tower.parameters(), *heads.parameters()], args.tower_rate, args.tower_steps, 100
    )
    order = _shuffled(len(scenes[0]), args.seed)
    started = time.monotonic()
    for step in tqdm(range(args.tower_steps), desc="tower"):
        picks = torch.tensor([next(order) for _ in range(args.tower_batch)])
        pixels, labels, found = (part[picks].to(device) for part in scenes)
        out = tower(normalised(pixels, processor), output_hidden_states=True)
        loss = heads.loss(out.hidden_states[-2], out.pooler_output, labels.long(), found)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == args.tower_steps - 1:
            right = heads.accuracy(out.hidden_states[-2], labels)
            log(stage="tower", step=step, loss=loss.item(), seconds=time.monotonic() - started, patches=right)


def tower_features(
    model: LlavaForConditionalGeneration, pixels: Tensor, processor: LlavaProcessor, args: argparse.Namespace
) -> Tensor:
    """The selected feature of every scene, ``[n, grid * grid, d]`` in float16."""
    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(pixels), 128), desc="features"):
            batch = normalised(pixels[start : start + 128].to(args.device), processor)
            out = model.model.vision_tower(batch, output_hidden_states=True)
            parts.append(out.hidden_states[-2][:, 1:].half().cpu())
    return torch.cat(parts)


def train_language_model(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    processor: LlavaProcessor,
    args: argparse.Namespace,
    log: Callable[..., None],
) -> None:
    """Stage two: projector and language model on stored features."""
    device, language = args.device, model.model.language_model
    packer = Packer(processor, features.shape[1])
    parts = [model.model.multi_modal_projector, language, model.lm_head]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer, schedule = optimizer_for(parameters, args.rate, args.steps, 150)
    order, rng = _shuffled(len(features), args.seed + 1), np.random.default_rng(args.seed)
    first, count = packer.first_visual, features.shape[1]
    started = time.monotonic()
    for step in tqdm(range(args.steps), desc="language model"):
        picks = [next(order) for _ in range(args.batch)]
        rows = [_asked(sample_scene(FIRST_TRAINING_SEED + pick), rng) for pick in picks]
        tokens, positions, labels, mask = packer.batch(rows)
        positions = warped(positions, first, count, rng)
        tokens, positions, labels, mask = (part.to(device) for part in (tokens, positions, labels, mask))
        projected = model.model.multi_modal_projector(features[torch.tensor(picks)].to(device).float())
        embeds = language.embed_tokens(tokens)
        embeds = torch.cat([embeds[:, :first], projected, embeds[:, first + count :]], dim=1)
        hidden = language(
            inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        scored = labels != IGNORED
        logits, wanted = model.lm_head(hidden[scored]), labels[scored]
        loss = functional.cross_entropy(logits, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == args.steps - 1:
            right = (logits.argmax(-1) == wanted).float().mean().item()
            log(stage="language", step=step, loss=loss.item(), tokens_right=right, seconds=time.monotonic() - started)
        if args.checkpoint_every and step % args.checkpoint_every == args.checkpoint_every - 1:
            save_demo(model, processor, args.out)


def warped(positions: Tensor, first: int, count: int, rng: np.random.Generator) -> Tensor:
    """Positions ``[b, length]`` with each row's image squeezed at random, and the text after it moved up.

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


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Every index once in a new order, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (int(index) for index in rng.permutation(count))


def parser() -> argparse.ArgumentParser:
    """The settings; the defaults are those of the weights in the package."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.demo.train", description="Train the demo model.")
    options.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.log")
    options.add_argument("--grid", type=int, default=12, help="visual tokens along a side of the picture")
    options.add_argument("--scenes", type=int, default=40_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--tower-steps", type=int, default=3600)
    options.add_argument("--tower-batch", type=int, default=32)
    options.add_argument("--tower-rate", type=float, default=1e-3)
    options.add_argument("--tower-from", type=Path, help="take the tower from this folder instead of training it")
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rate", type=float, default=8e-4)
    options.add_argument("--workers", type=int, default=2, help="processes that render")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--checkpoint-every", type=int, default=250)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Renders, trains both stages and saves; the log is one JSON object a line."""
    args = parser().parse_args(arguments)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "training.log").open("w", buffering=1) as stream:

        def log(**fields: object) -> None:
            rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in fields.items()}
            stream.write(json.dumps(rounded) + "\n")

        settings = {name: str(value) for name, value in vars(args).items() if name not in ("out", "tower_from")}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
        log(stage="start", settings=settings, versions=versions, machine=platform.machine())
        processor, model = demo_processor(args.grid), initialised_model(args.grid).to(args.device)
        scenes = render_all(args.scenes, args.grid, args.workers)
        if args.tower_from is None:
            train_tower(model, scenes, processor, args, log)
            save_demo(model, processor, args.out)
        else:
            log(stage="tower", note="taken from an earlier run of stage one with these settings")
            trained = LlavaForConditionalGeneration.from_pretrained(args.tower_from)
            model.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())
        features = tower_features(model, scenes[0], processor, args)
        del scenes
        train_language_model(model, features, processor, args, log)
        save_demo(model, processor, args.out)


if __name__ == "__main__":
    main()
