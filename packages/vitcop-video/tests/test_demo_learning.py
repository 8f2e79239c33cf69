"""The demo video model's training: what is left out and squeezed, and that a run can be made again."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from transformers import LlavaProcessor

from vitcop_llava.tools.demo.packing import Packer
from vitcop_llava.tools.demo.tower import normalized
from vitcop_video.demo.build import demo_model, demo_processor, words
from vitcop_video.demo.events import FRAMES, render_clip, sample_clip
from vitcop_video.demo.language import TURNS, clip_features, squeezed
from vitcop_video.demo.questions import questions_about
from vitcop_video.demo.thinning import (
    EVENLY,
    GROUND_FIRST,
    entering_tokens,
    leaving_order,
    shows_shape,
    thinned_masks,
)
from vitcop_video.demo.train import main


def test_stored_features_are_what_the_model_projects() -> None:
    model, processor = demo_model(), demo_processor()
    stored = clip_features(model, processor, 2, "cpu")
    clip = sample_clip(1_000_001)
    pixels = processor.pixels(render_clip(clip))
    torch.testing.assert_close(
        normalized(torch.from_numpy(render_clip(clip)), cast(LlavaProcessor, processor)), pixels, atol=1e-5, rtol=0
    )
    with torch.no_grad():
        seen = model.get_video_features(
            pixels[None], vision_feature_layer=-2, vision_feature_select_strategy="default"
        ).pooler_output[0]
        mine = model.model.multi_modal_projector(stored[1].float())
    # Stored in float16; transformers 5.17 does not tell frames apart here.
    torch.testing.assert_close(mine, seen.view_as(mine), atol=0.02, rtol=0.02)


def test_packed_prompt_is_that_of_the_processor() -> None:
    processor = demo_processor()
    clip = sample_clip(3)
    question = questions_about(clip)[0]
    text = f"USER: <video>\n{question.text} ASSISTANT: {question.answer}</s>"
    whole = processor(text, videos=[render_clip(clip)])["input_ids"][0].tolist()
    tokens, positions, _, _ = Packer(cast(LlavaProcessor, processor), 288).batch([[question]])
    start = whole.index(words().index("<video>"))
    assert tokens[0, start + 288 :].tolist() == whole[start + 288 : -1]
    assert positions[0].tolist() == list(range(len(whole) - 1))


def test_squeezed_clips_keep_their_order_and_some_are_left_alone() -> None:
    positions = torch.arange(400).repeat(64, 1)
    moved = squeezed(positions, 3, 36, np.random.default_rng(0))
    steps = moved.diff(dim=1)
    assert set(steps.unique().tolist()) == {0, 1}
    assert (steps[:, :3] == 1).all()
    assert (steps[:, 3 + FRAMES * 36 :] == 1).all()
    assert 16 < (moved == positions).all(1).sum() < 48


def test_tokens_that_show_a_shape_are_those_that_differ_from_the_ground() -> None:
    """Pixels of a token that shows none are those of the same clip with its shapes elsewhere."""
    clip = sample_clip(3)
    shown = shows_shape(clip, 6).reshape(FRAMES, 6, 6)
    frames = render_clip(clip)
    for frame, other in ((0, 7), (7, 0), (4, 3)):
        differ = (frames[frame] != frames[other]).any(-1).reshape(6, 28, 6, 28).any((1, 3))
        assert differ.any()
        assert not (differ & ~shown[frame] & ~shown[other]).any()
    assert 4 * 2 <= shown[0].sum() <= 9 * 2


@pytest.mark.parametrize("each_frame", [True, False])
def test_entering_tokens_are_a_share_in_order(each_frame: bool) -> None:
    order = np.random.default_rng(0).random((5, 288))
    index = entering_tokens(order, 0.25, each_frame=each_frame)
    assert index.shape == (5, 72)
    assert (index.diff(dim=1) > 0).all()
    of_frames = [torch.bincount(row // 36, minlength=FRAMES).tolist() for row in index]
    assert all((counts == [9] * FRAMES) is each_frame for counts in of_frames)
    if not each_frame:
        left = np.delete(order[0], index[0].numpy())
        assert order[0][index[0]].max() < left.min()


def test_ground_goes_first_where_it_should() -> None:
    shown = np.stack([shows_shape(sample_clip(seed), 6) for seed in range(40)])
    for thinning, least, most in ((EVENLY, 0.9, 1.1), (replace(GROUND_FIRST, favor=(0.05, 0.05)), 2.0, 8.0)):
        order = leaving_order(shown, thinning, np.random.default_rng(0))
        index = entering_tokens(order, 0.2, each_frame=False)
        assert least < np.take_along_axis(shown, index.numpy(), 1).mean() / shown.mean() < most


def test_later_layers_of_a_thinned_clip_see_fewer_tokens() -> None:
    mask = torch.ones(2, 1, 60, 60, dtype=torch.bool).tril()
    rng = np.random.default_rng(0)
    masks = thinned_masks(mask, 4, rng.random((2, 40)), GROUND_FIRST, rng)
    assert torch.equal(masks[0], mask)
    for before, after in pairwise(masks):
        assert not (after & ~before).any()
        assert after[:, :, 50, 4:44].sum() < before[:, :, 50, 4:44].sum()
        assert torch.equal(after[..., :4], mask[..., :4])
        assert torch.equal(after[..., 44:], mask[..., 44:])
        assert after.any(dim=-1).all()


def test_training_runs_and_is_reproducible(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = [
        "--clips",
        "4",
        "--steps",
        "4",
        "--second-steps",
        "4",
        "--batch",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--float32",
    ]
    few += ["--features", str(tmp_path / "features.npy")]
    for name in ("first", "second"):
        main([*few, "--out", str(tmp_path / name)])
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    lines = [json.loads(line) for line in (tmp_path / "first" / "training.log").read_text().splitlines()]
    assert [line.get("turn") for line in lines] == [None, *TURNS, *TURNS]
    capfd.readouterr()
