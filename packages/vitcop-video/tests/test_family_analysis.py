"""What an analysis observes of LLaVA-NeXT-Video, against its own attention maps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vitcop_llava.tools.analysis import analyze, observe

SIDE, PATCH, TOKENS, VIDEO_TOKEN = 64, 8, 16, 99

Inputs = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_clip_is_observed_frame_by_frame(build_video: Callable[..., Any], video_inputs: Inputs, kind: str) -> None:
    given = video_inputs([[3, "clip4", 7]])
    (seen,) = observe(build_video(kind), **given)
    eager = build_video(kind, "eager")
    visual = (given["input_ids"][0] == VIDEO_TOKEN).nonzero()[:, 0]
    maps = torch.stack([each[0].mean(0) for each in eager(**given, output_attentions=True).attentions])
    np.testing.assert_allclose(seen.attention, maps[:, -1, visual].numpy(), rtol=1e-4, atol=1e-6)

    frames = given["pixel_values_videos"][0]
    heads = eager.model.vision_tower(frames, output_attentions=True).attentions[-2][:, :, 0, 1:].sum(1)
    pooled = torch.nn.functional.avg_pool2d(heads.view(4, 1, SIDE // PATCH, -1), 2).flatten(1)
    assert seen.grid == (4, 4)
    np.testing.assert_allclose(np.stack(seen.cls_attention), pooled.numpy(), rtol=1e-4, atol=1e-6)


def test_clips_and_pictures_are_told_apart(video_model: Any, video_inputs: Inputs) -> None:
    rows = [[2, "clip2", 3, (100, 60), 5], [1, (60, 120), 4, "clip3", 6]]
    together = observe(video_model, **video_inputs(rows))
    first = [len(unit) for unit in together[0].cls_attention[:2]]
    assert first == [TOKENS, TOKENS]
    assert [seen.grid for seen in together] == [(4, 4), (8, 8)]
    for row, seen in zip(rows, together, strict=True):
        (alone,) = observe(video_model, **video_inputs([row]))
        np.testing.assert_allclose(seen.attention, alone.attention, rtol=1e-4, atol=1e-6)
        for unit, wanted in zip(seen.cls_attention, alone.cls_attention, strict=True):
            np.testing.assert_allclose(unit, wanted, rtol=1e-4, atol=1e-6)


def test_clip_is_analyzed(video_model: Any, video_inputs: Inputs) -> None:
    analysis = analyze(video_model, [video_inputs([[3, "clip4", 7]]), video_inputs([[3, "clip2", 7]])])
    assert [sample.tokens for sample in analysis.samples] == [4 * TOKENS, 2 * TOKENS]
    assert analysis.heat.shape == (8, 4, 4)
