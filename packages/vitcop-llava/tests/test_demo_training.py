"""The training script: what it teaches is what will be asked, and a run can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vitcop_llava.tools.demo.build import demo_processor
from vitcop_llava.tools.demo.labels import patch_labels, presence
from vitcop_llava.tools.demo.language import warped
from vitcop_llava.tools.demo.packing import IGNORED, Packer
from vitcop_llava.tools.demo.questions import listing, questions_about
from vitcop_llava.tools.demo.scenes import CELLS, COLORS, render, sample_scene
from vitcop_llava.tools.demo.tower import normalized
from vitcop_llava.tools.demo.train import main


def test_patch_labels_name_the_shape_over_each_patch() -> None:
    scene = sample_scene(5)
    labels = patch_labels(scene, 12)
    for item in scene.shapes:
        center = labels[int(item.y * 12) * 12 + int(item.x * 12)]
        assert center[0] == list(COLORS).index(item.color) + 1
        assert center[3] == CELLS.index(item.cell) + 1
        assert center[4] == 1
    assert labels[:, 4].sum() == len(scene.shapes)
    assert presence(scene)[: len(COLORS)].sum() == len({item.color for item in scene.shapes})


def test_packed_questions_see_the_image_and_themselves_alone() -> None:
    processor = demo_processor(12)
    packer = Packer(processor, 144)
    scene = sample_scene(5)
    asked = [*questions_about(scene)[:3], listing(scene)]
    tokens, positions, labels, mask = packer.batch([asked, asked[:1]])
    prefix = len(packer.prefix)
    whole = processor.tokenizer(f"USER: <image> {asked[0].text} ASSISTANT: {asked[0].answer}</s>")["input_ids"]
    length = len(whole) - 1 - (prefix - 143) + prefix  # one placeholder became 144, and </s> is only predicted
    assert tokens[1, packer.first_visual + 144 : length].tolist() == whole[packer.first_visual + 1 : -1]
    assert positions[0, :length].tolist() == list(range(length))
    answer = labels[1][labels[1] != IGNORED].tolist()
    assert answer == processor.tokenizer(f"{asked[0].answer}</s>", add_special_tokens=False)["input_ids"]
    second = int((positions[0] == prefix).nonzero()[1])
    row = mask[0, 0, second]
    assert row[:prefix].all()
    assert not row[prefix:second].any()


def test_normalized_pixels_are_those_of_the_image_processor() -> None:
    processor = demo_processor(12)
    picture = render(sample_scene(3), 168)
    expected = processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    mine = normalized(torch.from_numpy(np.asarray(picture).copy())[None], processor)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


def test_training_runs_and_is_reproducible(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["--scenes", "12", "--tower-steps", "2", "--tower-batch", "4", "--steps", "2", "--batch", "2"]
    few += ["--told-steps", "2", "--workers", "1", "--threads", "1", "--device", "cpu"]
    for name in ("first", "second"):
        main([*few, "--out", str(tmp_path / name)])
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    lines = [json.loads(line) for line in (tmp_path / "first" / "training.log").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["start", "tower", "tower", "language", "language", "told", "told"]
    capfd.readouterr()


def test_told_scene_stands_in_the_place_of_the_image() -> None:
    processor = demo_processor(12)
    scene = sample_scene(5)
    asked = [questions_about(scene)[0]]
    tokens, positions, _, mask = Packer(processor, 144).batch([asked], [listing(scene).answer])
    whole = processor.tokenizer(f"USER: {listing(scene).answer}. {asked[0].text} ASSISTANT: {asked[0].answer}")
    assert tokens[0].tolist() == whole["input_ids"]
    assert positions[0].tolist() == list(range(tokens.shape[1]))
    assert torch.equal(mask[0, 0], torch.ones_like(mask[0, 0]).tril())


def test_warped_positions_squeeze_the_image_and_keep_the_order() -> None:
    positions = torch.arange(200).repeat(64, 1)
    squeezed = warped(positions, 3, 144, np.random.default_rng(0))
    steps = squeezed.diff(dim=1)
    assert set(steps.unique().tolist()) == {0, 1}
    assert (steps[:, :3] == 1).all()
    assert (steps[:, 147:] == 1).all()
    untouched = (squeezed == positions).all(1)
    assert 16 < untouched.sum() < 48
