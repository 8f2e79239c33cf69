"""Settings of the whole process change nothing of what is kept of a clip."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

import vitcop_llava

SIDE, FRAMES, TOKENS, VIDEO_TOKEN = 192, 4, 144, 99
"""12 x 12 tokens a frame, whose positions bfloat16 does not hold."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default-bfloat16": lambda: default_dtype(torch.bfloat16),
    "default-float64": lambda: default_dtype(torch.float64),
    "default-meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
}
SETTINGS: dict[str, dict[str, Any]] = {
    # 3 down and 4 across is as far as may be, and so is one frame further, if positions are exact enough.
    "frames": {"spatial_threshold": 5 / 12},
    "spans": {"spatial_threshold": (25 / 144 + 1 / 9) ** 0.5, "cluster_frames": 3},
    "change": {"change_share": 0.5},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", SETTINGS)
def test_kept_tokens_of_a_clip_are_the_same(
    build_video: Callable[..., Any], budget: Any, name: str, state: str
) -> None:
    model, method = build_video(side=SIDE), budget("1/2", **SETTINGS[name])
    ids = torch.tensor([[1, 4, *[VIDEO_TOKEN] * (FRAMES * TOKENS), 5, 6]])
    clip = torch.randn(1, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def run() -> tuple[Any, Any]:
        with vitcop_llava.prune(model, method) as pruner:
            return model(input_ids=ids, pixel_values_videos=clip).logits, pruner.survivors()

    with torch.no_grad():
        wanted, kept = run()
        with STATES[state]():
            logits, found = run()
    assert torch.equal(found.clusters, kept.clusters)
    for mine, theirs in zip(found.stages, kept.stages, strict=True):
        assert torch.equal(mine.patches, theirs.patches)
        assert torch.equal(mine.merged, theirs.merged)
    assert torch.equal(logits, wanted)
