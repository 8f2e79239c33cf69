"""Prefill time, unpruned and pruned, beside what the plan allows: ``python -m vitcop_llava.bench``.

The model has a real checkpoint's shape and random weights: time depends on shapes, not on what the weights say. Each
pruned prefill is compared, in the same run, with its *oracle*: tower, projector and head as they are, and the bare
decoder layers run at the plan's lengths, with no decision to make and nothing to move. The variants take turns, so that
a noisy machine hits them alike; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicCache

from vitcop_core import Plan, ViTCoP, identity_plan
from vitcop_llava.environment import environment
from vitcop_llava.families.base import decoder_shape
from vitcop_llava.pruner import prune

TEXT_BEFORE, TEXT_AFTER = 35, 25
"""Tokens of a LLaVA-1.5 prompt before the image (system prompt) and after it (question): 60 in all."""

_CLIP_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_CLIP_SMALL = {
    **_CLIP_LARGE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava-1.5-7b": (
        _CLIP_LARGE,
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    "llava-1.5-13b": (
        _CLIP_LARGE,
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    ),
    "small": (
        _CLIP_SMALL,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4},
    ),
}


def random_model(name: str, dtype: torch.dtype, device: str) -> LlavaForConditionalGeneration:
    """A model of a named shape with random weights, built without ever holding it twice."""
    vision, text = SHAPES[name]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096, **text),
        image_token_index=32000,
    )
    config.dtype = dtype
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device=device).eval()
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            _fill(module.weight.data, noise, module.weight[0].numel() ** -0.5)
    for label, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(0.0 if label.endswith("bias") else 1.0)
    _restore_buffers(model)
    built: LlavaForConditionalGeneration = model
    return built


def _fill(weight: Tensor, noise: Tensor, scale: float) -> None:
    """Repeats the noise over a weight: drawing seven billion numbers would take longer than the measurement."""
    flat, scaled = weight.view(-1), noise * scale
    for start in range(0, flat.numel(), len(scaled)):
        part = flat[start : start + len(scaled)]
        part.copy_(scaled[: len(part)])


def _restore_buffers(model: LlavaForConditionalGeneration) -> None:
    """Recomputes what a model made on the meta device lacks: rotary frequencies and position indices."""
    language = model.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config=language.config).to(model.device)
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=model.device)[None]


def prompt(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """One image and 60 text tokens."""
    generator = torch.Generator().manual_seed(1)
    vision: Any = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    text = torch.randint(3, 31000, (TEXT_BEFORE + TEXT_AFTER,), generator=generator)
    image = torch.full((tokens,), model.config.image_token_id)
    ids = torch.cat([text[:TEXT_BEFORE], image, text[TEXT_BEFORE:]])[None].to(model.device)
    pixels = torch.randn((1, 3, vision.image_size, vision.image_size), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.device, model.dtype),
    }


def oracle(model: LlavaForConditionalGeneration, inputs: dict[str, Tensor], plan: Plan) -> Tensor:
    """Tower, projector and head as they are, and the bare layers at the plan's lengths."""
    language = model.model.language_model
    model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
    hidden = language.embed_tokens(inputs["input_ids"])
    cache = DynamicCache(config=language.config)
    text = hidden.shape[1] - plan.visual_tokens
    for layer, tokens in zip(language.layers, plan.tokens_per_layer, strict=True):
        if layer is language.layers[0] or hidden.shape[1] != tokens + text:
            hidden = hidden[:, : tokens + text].contiguous()
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
            rotary = language.rotary_emb(hidden, position_ids=positions)
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, past_key_values=cache, use_cache=True)
    logits: Tensor = model.lm_head(language.norm(hidden)[:, -1:])
    return logits


@dataclass(frozen=True)
class Budget:
    """A pruned prefill beside its oracle and the unpruned one.

    Attributes:
        retained_tokens: the budget; average_tokens: what the plan makes of it.
        seconds, oracle_seconds: every repeat.
        over_oracle: ratio of the medians.
        share_of_unpruned: ratio of the median to the unpruned one's.
        share_of_macs: the same of the language model's multiply-accumulates.
    """

    retained_tokens: int
    average_tokens: float
    seconds: list[float]
    oracle_seconds: list[float]
    over_oracle: float
    share_of_unpruned: float
    share_of_macs: float


@dataclass(frozen=True)
class Result:
    """One run: the unpruned prefill's seconds, and a `Budget` for each one asked for."""

    visual_tokens: int
    text_tokens: int
    seconds: list[float]
    budgets: list[Budget]


def measure(model: LlavaForConditionalGeneration, retain: list[int], repeats: int) -> Result:
    """Times every variant in turn, ``repeats`` times after one round to warm up."""
    inputs, shape = prompt(model), decoder_shape(model.config.get_text_config())
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    text = inputs["input_ids"].shape[1] - visual
    methods = {tokens: ViTCoP(retained_tokens=tokens) for tokens in retain}
    plans = {tokens: method.plan(shape.num_layers, visual) for tokens, method in methods.items()}

    def unpruned() -> None:
        model(**inputs, logits_to_keep=1)

    def pruned(tokens: int) -> None:
        with prune(model, methods[tokens]):
            model(**inputs, logits_to_keep=1)

    runs: dict[tuple[str, int], Callable[[], object]] = {("unpruned", visual): unpruned}
    for tokens in retain:
        runs["oracle", tokens] = partial(oracle, model, inputs, plans[tokens])
        runs["pruned", tokens] = partial(pruned, tokens)
    times: dict[tuple[str, int], list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for repeat in tqdm(range(repeats + 1), desc="rounds", file=sys.stderr):
            for name, run in runs.items():
                seconds = timed(run, model.device)
                if repeat:
                    times[name].append(seconds)
    full_macs = identity_plan(shape.num_layers, (visual,)).macs(shape, text)
    median = {name: statistics.median(values) for name, values in times.items()}
    budgets = [
        Budget(
            retained_tokens=tokens,
            average_tokens=float(plans[tokens].average_tokens),
            seconds=times["pruned", tokens],
            oracle_seconds=times["oracle", tokens],
            over_oracle=median["pruned", tokens] / median["oracle", tokens],
            share_of_unpruned=median["pruned", tokens] / median["unpruned", visual],
            share_of_macs=plans[tokens].macs(shape, text) / full_macs,
        )
        for tokens in retain
    ]
    return Result(visual, text, times["unpruned", visual], budgets)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, everything that it started on the device included."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, and stores the result."""
    options = argparse.ArgumentParser(prog="python -m vitcop_llava.bench", description=__doc__)
    options.add_argument("--shape", choices=list(SHAPES), default="llava-1.5-7b")
    options.add_argument("--retain", type=int, nargs="+", default=[192, 128, 64])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, help="JSON file for the result")
    args = options.parse_args(arguments)
    result = measure(random_model(args.shape, getattr(torch, args.dtype), args.device), args.retain, args.repeats)
    command = f"python -m vitcop_llava.bench --shape {args.shape} --dtype {args.dtype} --repeats {args.repeats}"
    if args.out is not None:
        stored = {"command": command, "environment": environment(), "shape": args.shape, "dtype": args.dtype}
        args.out.write_text(json.dumps(stored | asdict(result), indent=1) + "\n")
    shown = Table("tokens", "prefill", "over its oracle", "of unpruned", "MACs of unpruned", title=command)
    shown.add_row(str(result.visual_tokens), f"{statistics.median(result.seconds):.3g} s", "", "100.0%", "100.0%")
    for row in result.budgets:
        shares = (f"{row.over_oracle:.3f}", f"{row.share_of_unpruned:.1%}", f"{row.share_of_macs:.1%}")
        shown.add_row(str(row.retained_tokens), f"{statistics.median(row.seconds):.3g} s", *shares)
    Console(width=100).print(shown)


if __name__ == "__main__":
    main()
