"""Trains the demo video model: ``python -m vitcop_video.demo.train --out FOLDER``.

The tower is the image demo's, unchanged; projector and language model begin with the image demo's weights. They learn
from the tower's stored features: questions of every kind and a listing of what happens follow each clip, each seeing
the clip and itself alone. The batches take turns: clips told in words, whole clips, and clips of which random tokens
are left out, in the first stage any, in the second more of the ground than of the shapes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextVideoForConditionalGeneration

from vitcop_core.files import write_whole
from vitcop_llava.tools.demo.training_log import NOTE, training_log
from vitcop_video.demo.build import demo_model, demo_processor, save_demo
from vitcop_video.demo.language import STAGES, LanguageTrainer, clip_features
from vitcop_video.processing import ClipProcessor


def parser() -> argparse.ArgumentParser:
    """Return the settings; the defaults are those of the weights in the package."""
    options = argparse.ArgumentParser(
        prog="python -m vitcop_video.demo.train", description="Train the demo video model."
    )
    options.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.log")
    options.add_argument("--clips", type=int, default=12_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, default=1600)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rate", type=float, default=8e-4)
    options.add_argument("--second-steps", type=int, default=1300)
    options.add_argument("--second-rate", type=float, default=4e-4)
    options.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    options.add_argument("--start-from", type=Path, help="folder with the weights of stages that are not run")
    options.add_argument(
        "--features", type=Path, help=".npy file with the features of an earlier run, or for this one's"
    )
    options.add_argument("--save-every", type=int, default=250)
    options.add_argument("--float32", dest="bfloat16", action="store_false", help="no bfloat16 in matrix products")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options


def stored_features(
    model: LlavaNextVideoForConditionalGeneration, processor: ClipProcessor, args: argparse.Namespace
) -> Tensor:
    """Return the tower's features of the training clips, from the file where it is there."""
    if args.features is not None and args.features.exists():
        return torch.from_numpy(np.load(args.features))
    features = clip_features(model, processor, args.clips, args.device)
    if args.features is not None:
        with write_whole(args.features) as stream:
            np.save(stream, features.numpy())
    return features


def main(arguments: list[str] | None = None) -> None:
    """Render, train and save; the log is one JSON object a line."""
    args = parser().parse_args(arguments)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    with training_log(args, ("out", "start_from", "features")) as log:
        processor, model = demo_processor(), demo_model().to(args.device)
        features = stored_features(model, processor, args)
        if args.start_from is not None:
            log(stage="start", note=NOTE)
            model.load_state_dict(LlavaNextVideoForConditionalGeneration.from_pretrained(args.start_from).state_dict())
        trainer = LanguageTrainer(model, features, processor, args)
        for stage, (steps, rate) in zip(
            STAGES, [(args.steps, args.rate), (args.second_steps, args.second_rate)], strict=True
        ):
            if stage in args.stages:
                trainer.train(stage, steps, rate, log, lambda: save_demo(model, processor, args.out))


if __name__ == "__main__":
    main()
