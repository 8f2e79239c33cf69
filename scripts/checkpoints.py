"""Write the table of checkpoints in docs/checkpoints.md: what runs on each, found by building it small and pruning it.

    python scripts/checkpoints.py            # writes the page
    python scripts/checkpoints.py --list     # prints the rows

A row needs no weights. It builds the checkpoint's classes with its kinds of tower, decoder and settings, in a few
small layers with random weights. It prunes that model with every method, and runs a prompt. What a checkpoint is made
of comes from its configuration on the hub.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import vitcop_llava
from vitcop_core.parsing import METHODS, find_method
from vitcop_llava.families import locate
from vitcop_llava.tools.benchmark.prompts import make_prompt

PAGE = Path(__file__).parent.parent / "docs" / "checkpoints.md"
BEGIN, END = "<!-- checkpoints: begin -->", "<!-- checkpoints: end -->"
SHARE = "2/3"
"""A budget that every method can meet in eight layers."""

_SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_IMAGE, _VIDEO = 90, 91


@dataclass(frozen=True)
class Checkpoint:
    """One row.

    Attributes:
        names: On the hub; all of them are built the same way.
        build: Makes the small model.
    """

    names: tuple[str, ...]
    build: Callable[[], Any]


def _text(kind: str, **more: Any) -> Any:
    """Return the configuration of a decoder of eight layers."""
    sizes = {"vocab_size": 100, "num_hidden_layers": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    return getattr(transformers, f"{kind}Config")(**_SIZES, **sizes, pad_token_id=0, **more)


def _vision(kind: str, side: int = 28) -> Any:
    """Return the configuration of a tower of three layers, in patches of 7 pixels."""
    return getattr(transformers, f"{kind}VisionConfig")(**_SIZES, num_hidden_layers=3, image_size=side, patch_size=7)


def _llava(tower: str, text: Any, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        make: Any = transformers.LlavaConfig
        config = make(vision_config=_vision(tower), text_config=text, image_token_id=_IMAGE, **settings)
        return transformers.LlavaForConditionalGeneration(config)

    return build


def _tiled(family: str, tower: str, text: Any, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        kinds = (getattr(transformers, f"{family}{end}") for end in ("Config", "ForConditionalGeneration"))
        make_config, make_model = kinds
        points = [[28, 56], [56, 28], [56, 56]]
        tokens = {"image_token_id": _IMAGE, "image_token_index": _IMAGE, "image_grid_pinpoints": points}
        return make_model(make_config(vision_config=_vision(tower), text_config=text, **tokens, **settings))

    return build


def _qwen(family: str, vision: dict[str, Any], text: dict[str, Any]) -> Callable[[], Any]:
    def build() -> Any:
        kinds = (getattr(transformers, f"{family}{end}") for end in ("Config", "ForConditionalGeneration"))
        make_config, make_model = kinds
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        sizes = {"vocab_size": 100, "num_hidden_layers": 8, "num_key_value_heads": 2, "rope_parameters": rope}
        side = {"depth": 3, "num_heads": 4, "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2}
        tokens = {"image_token_id": _IMAGE, "video_token_id": _VIDEO, "vision_start_token_id": 92}
        config = make_config(vision_config=side | vision, text_config=_SIZES | sizes | text, **tokens)
        return make_model(config)

    return build


_FULL: dict[str, Any] = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
_WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
_DEEP: dict[str, Any] = _WIDE | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
_SPARSE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _vip() -> Any:
    make: Any = transformers.VipLlavaConfig
    config = make(
        vision_config=_vision("CLIP"),
        text_config=_text("Llama"),
        image_token_id=_IMAGE,
        image_token_index=_IMAGE,
        vision_feature_layers=[-2, -3],
    )
    return transformers.VipLlavaForConditionalGeneration(config)


def _pixtral() -> Any:
    vision = transformers.PixtralVisionConfig(**_SIZES, num_hidden_layers=3, image_size=28, patch_size=7)
    make: Any = transformers.LlavaConfig
    config = make(vision_config=vision, text_config=_text("Mistral"), image_token_id=_IMAGE, **_FULL)
    return transformers.LlavaForConditionalGeneration(config)


CHECKPOINTS = (
    Checkpoint(("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"), _llava("CLIP", _text("Llama"))),
    Checkpoint(("llava-hf/bakLlava-v1-hf",), _llava("CLIP", _text("Mistral"))),
    Checkpoint(
        ("llava-hf/llava-interleave-qwen-0.5b-hf", "llava-hf/llava-interleave-qwen-7b-hf"),
        _llava("Siglip", _text("Qwen2"), **_FULL),
    ),
    Checkpoint(("xtuner/llava-phi-3-mini-hf",), _llava("CLIP", _text("Phi3"))),
    Checkpoint(("mistral-community/pixtral-12b",), _pixtral),
    Checkpoint(("llava-hf/vip-llava-7b-hf", "llava-hf/vip-llava-13b-hf"), _vip),
    Checkpoint(
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-hf/llava-v1.6-vicuna-13b-hf", "llava-hf/llava-v1.6-34b-hf"),
        _tiled("LlavaNext", "CLIP", _text("Llama")),
    ),
    Checkpoint(("llava-hf/llava-v1.6-mistral-7b-hf",), _tiled("LlavaNext", "CLIP", _text("Mistral"))),
    Checkpoint(("llava-hf/llama3-llava-next-8b-hf",), _tiled("LlavaNext", "CLIP", _text("Llama"))),
    Checkpoint(
        ("llava-hf/llava-next-72b-hf", "llava-hf/llava-next-110b-hf"), _tiled("LlavaNext", "CLIP", _text("Qwen2"))
    ),
    Checkpoint(
        ("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava-hf/LLaVA-NeXT-Video-34B-hf"),
        _tiled("LlavaNextVideo", "CLIP", _text("Llama"), video_token_index=_VIDEO),
    ),
    Checkpoint(
        (
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "llava-hf/llava-onevision-qwen2-72b-ov-hf",
        ),
        _tiled("LlavaOnevision", "Siglip", _text("Qwen2"), video_token_id=_VIDEO, **_FULL),
    ),
    Checkpoint(
        ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"),
        _qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}, {}),
    ),
    Checkpoint(
        tuple(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
        _qwen("Qwen2_5_VL", _WIDE | {"window_size": 28, "fullatt_block_indexes": [0, 2]}, {}),
    ),
    Checkpoint(
        tuple(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")),
        _qwen("Qwen3VL", _DEEP, {"head_dim": 8}),
    ),
    Checkpoint(
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
        _qwen("Qwen3VLMoe", _DEEP, _SPARSE),
    ),
)


@torch.no_grad()
def try_methods(model: Any) -> dict[str, str]:
    """Return why each method is refused, by its name; an empty reason where it prunes a prompt of the model."""
    found = {}
    for name, kind in METHODS.items():
        method = find_method(name, retention_ratio=_share())
        try:
            with vitcop_llava.prune(model, method) as pruner, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # random weights have no scale that fits
                parts = locate(model)
                if parts.scored is not None:  # towers that nobody reads take pixels in a form of their own
                    prompt = make_prompt(model, parts, text_tokens=8)
                    model(**prompt.inputs)
                    assert pruner.report.pruned
            found[kind] = ""
        except (TypeError, ValueError) as error:
            found[kind] = str(error)
    return found


def _share() -> Any:
    from fractions import Fraction

    return Fraction(SHARE)


def row_of(checkpoint: Checkpoint) -> str:
    """Return a checkpoint's row of the table."""
    model = checkpoint.build().eval()
    refused = try_methods(model)
    runs = [name for name, reason in refused.items() if not reason]
    names = ", ".join(f"`{name}`" for name in checkpoint.names)
    kind = type(model).__name__
    if len(runs) == len(refused):
        return f"| {names} | `{kind}` | all methods |  |"
    reasons = dict.fromkeys(reason for reason in refused.values() if reason)
    said = next(iter(reasons)).replace("|", "\\|")
    return f"| {names} | `{kind}` | {', '.join(runs) or 'none'} | {said} |"


def table() -> str:
    """Return the whole table."""
    from tqdm import tqdm

    rows = [row_of(checkpoint) for checkpoint in tqdm(CHECKPOINTS, desc="checkpoints")]
    return "\n".join(["| checkpoints | class | runs | why not the others |", "|---|---|---|---|", *rows])


def main() -> None:
    """Write the page, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the table and leave the page as it is")
    given, made = parser.parse_args(), table()
    if given.list:
        sys.stdout.write(made + "\n")
        return
    page = PAGE.read_text()
    head, tail = page[: page.index(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{head}{BEGIN}\n{made}\n{tail}")


if __name__ == "__main__":
    main()
