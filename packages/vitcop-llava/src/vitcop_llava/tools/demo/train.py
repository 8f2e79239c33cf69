"""Trains the demo model from nothing: ``python -m vitcop_llava.tools.demo.train --out FOLDER``.

Three stages. First the vision tower, on what stands under each patch and, for the CLS token, on what the scene holds:
CLS has to read the shapes, because its attention is what Stage I ranks by. Then projector and language model, on the
tower's stored features: ten questions and a listing of the scene follow each image, each seeing the image and itself
alone (as when it is asked alone), so that an image is encoded once for all of them. The listing is what teaches the
model to bind colors, shapes and places to each other. Last, every third batch has its scenes told in words, and no
image: what a language model learns from text before it ever sees a picture, so that it does not need one to form a
sentence.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from vitcop_llava.tools.demo.build import PATCH_SIZE, demo_processor, initialised_model, save_demo
from vitcop_llava.tools.demo.labels import PRESENCE, patch_labels, presence
from vitcop_llava.tools.demo.language import FIRST_TRAINING_SEED, LanguageTrainer
from vitcop_llava.tools.demo.scenes import render, sample_scene
from vitcop_llava.tools.demo.tower import tower_features, train_tower
from vitcop_llava.tools.demo.training_log import NOTE, training_log

STAGES = ("tower", "language", "told")


def _rendered(arguments: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    seed, grid = arguments
    scene = sample_scene(seed)
    pixels = np.asarray(render(scene, grid * PATCH_SIZE))
    return pixels, patch_labels(scene, grid).astype(np.uint8), presence(scene)


def render_all(count: int, grid: int, workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Render the training scenes: pixels ``[n, side, side, 3]`` uint8, patch labels and presence."""
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


def parser() -> argparse.ArgumentParser:
    """Return the settings; the defaults are those of the weights in the package."""
    options = argparse.ArgumentParser(
        prog="python -m vitcop_llava.tools.demo.train", description="Train the demo model."
    )
    options.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.log")
    options.add_argument("--grid", type=int, default=12, help="visual tokens along a side of the picture")
    options.add_argument("--scenes", type=int, default=40_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--tower-steps", type=int, default=3600)
    options.add_argument("--tower-batch", type=int, default=32)
    options.add_argument("--tower-rate", type=float, default=1e-3)
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rate", type=float, default=8e-4)
    options.add_argument("--told-steps", type=int, default=450)
    options.add_argument("--told-every", type=int, default=3)
    options.add_argument("--told-rate", type=float, default=3e-4)
    options.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options.add_argument("--start-from", type=Path, help="folder with the weights of stages that are not run")
    options.add_argument("--workers", type=int, default=2, help="processes that render")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Render, trains the stages and saves; the log is one JSON object a line."""
    args = parser().parse_args(arguments)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    with training_log(args, ("out", "start_from")) as log:
        processor, model = demo_processor(args.grid), initialised_model(args.grid)
        if args.start_from is not None:
            log(stage="start", note=NOTE)
            model.load_state_dict(LlavaForConditionalGeneration.from_pretrained(args.start_from).state_dict())
        model.to(args.device)
        scenes = render_all(args.scenes, args.grid, args.workers)
        if "tower" in args.stages:
            train_tower(model, scenes, processor, args, log)
            save_demo(model, processor, args.out)
        features = tower_features(model, scenes[0], processor, args)
        del scenes
        trainer = LanguageTrainer(model, features, processor, args)
        if "language" in args.stages:
            trainer.train("language", args.steps, args.rate, 0, log)
            save_demo(model, processor, args.out)
        if "told" in args.stages:
            trainer.train("told", args.told_steps, args.told_rate, args.told_every, log)
            save_demo(model, processor, args.out)


if __name__ == "__main__":
    main()
