"""Pictures, and how engines are started on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

import vitcop_llava
from vitcop_core import find_method

Job = tuple[str, list[Image.Image]]
"""A prompt and its images."""

ONE = "USER: <image>\nwhat color is the circle ? ASSISTANT:"
TWO = "USER: <image>\n <image>\nwhat color is the circle ? ASSISTANT:"
TEXT = "USER: what color ? ASSISTANT:"
SIDE = 168
PINPOINTS = [[168, 336], [336, 168], [336, 336]]
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 1024,
    "limit_mm_per_prompt": {"image": 4},
    "enforce_eager": True,
    "block_size": 32,
    "gpu_memory_utilization": 0.1,
    "disable_log_stats": False,
}
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"enable_chunked_prefill": True, "max_num_batched_tokens": 64},
    "ranks": {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
    "compiled": {"enforce_eager": False},
}
"""Ways to run an engine."""
EARLY: dict[str, Any] = {"method": "earlyvitcop(cutoff_distance=3.0)", "retained_tokens": 36}
ZIP: dict[str, Any] = {"method": "visionzip", "retained_tokens": 36}
REFUSED: list[tuple[Any, str]] = [
    ({"method": "vitcop", "retained_tokens": 36}, "method must cut before the language model alone"),
    ({"method": "fastv", "retained_tokens": 100}, "method must cut before the language model alone"),
    ({"method": "earlyvitcop(ranking='text')", "retained_tokens": 36}, "ranking must be one of"),
    ({"method": "magic", "retained_tokens": 36}, "text must be one of vitcop"),
    ({"method": "visionzip", "retained_tokens": 1000}, "retained_tokens must be at most"),
    ({"method": "visionzip", "retained_tokens": -1}, "retained_tokens must be a positive number"),
    ({"method": "visionzip", "retention_ratio": 2}, "retention_ratio must be"),
    ({"method": "visionzip"}, "must be given, and one alone, got none"),
    ({"method": "visionzip", "keep": 3}, "vitcop must have method, retained_tokens or retention_ratio, got keep"),
    ({"method": 5}, "vitcop must name a method as text, got 5"),
    ("visionzip", "vitcop must be settings such as"),
]
"""Settings, and what is said of them."""


def pictures(sizes: list[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    """Return pictures of coarse noise, of these widths and heights."""
    random = np.random.default_rng(seed)
    coarse = (random.integers(0, 255, (6, 6, 3), dtype=np.uint8) for _ in sizes)
    return [
        Image.fromarray(noise).resize(size, Image.Resampling.NEAREST) for noise, size in zip(coarse, sizes, strict=True)
    ]


def expected(folder: Path, kind: Any, jobs: list[Job], settings: dict[str, Any] | None) -> list[list[int]]:
    """Greedy tokens by transformers."""
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    processor = AutoProcessor.from_pretrained(folder)
    given = dict(settings or {"method": "vitcop", "retention_ratio": 1})
    method = find_method(given.pop("method"), **given)
    found = []
    with vitcop_llava.prune(model, method), torch.no_grad():
        for prompt, images in jobs:
            inputs = processor(text=prompt, images=images or None, return_tensors="pt")
            answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            found.append(answer[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def answers(engine: Any, jobs: list[Job], settings: dict[str, Any] | None = None) -> list[list[int]]:
    """Greedy tokens by vLLM, all requests at once."""
    from vllm import SamplingParams

    requests: list[dict[str, Any]] = []
    for prompt, images in jobs:
        request: dict[str, Any] = {"prompt": prompt}
        if images:
            request["multi_modal_data"] = {"image": images}
        if settings is not None:
            request["mm_processor_kwargs"] = {"vitcop": settings}
        requests.append(request)
    found = engine.generate(requests, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    return [list(each.outputs[0].token_ids) for each in found]
