"""The commands on a Qwen2.5-VL and a Qwen3-VL checkpoint: pictures of any size, through transformers' own processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_small import END, IMAGE, MIXED, START, VIDEO, build, given, received
from transformers import GenerationConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from typer.testing import CliRunner, Result

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.demo.build import word_tokenizer
from vitcop_llava.tools.model.loading import load
from vitcop_llava.tools.model.processors import _for_pictures

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
SPECIAL = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "what", "is", "this"]
LARGE = {"shortest_edge": 8 * 8, "longest_edge": 8 * 8 * 64}
"""Pixels: from 1 to 64 tokens, squares of 2 x 2 patches of 4 x 4."""


def save(folder: Path, family: str, **changed: Any) -> Path:
    """Write a checkpoint of the small model with a processor of whole words."""
    model = build(family)
    numbered = [SPECIAL.get(number, WORDS[number] if number < len(WORDS) else f"w{number}") for number in range(100)]
    tokens = {name: SPECIAL[number] for name, number in (("image_token", IMAGE), ("video_token", VIDEO))}
    tokenizer = word_tokenizer(numbered, **tokens, vision_start_token=SPECIAL[START], vision_end_token=SPECIAL[END])
    settings: dict[str, Any] = {"patch_size": 4, "size": LARGE} | changed
    images = Qwen2VLImageProcessorPil(**settings)
    processor: Any = _for_pictures(PROCESSOR_MAPPING[type(model.config)])
    processor(images, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)
    suppressed, model.generation_config.suppress_tokens = model.generation_config.suppress_tokens, None
    model.save_pretrained(folder)
    model.generation_config.suppress_tokens = suppressed  # the model is everybody's
    GenerationConfig(suppress_tokens=[IMAGE, VIDEO, START], pad_token_id=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Qwen2.5-VL."""
    return save(tmp_path_factory.mktemp("qwen2.5"), "qwen2.5")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 64 x 40 pixels: 8 x 5 tokens."""
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def said(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.mark.parametrize("family", ["qwen2", "qwen2.5", "qwen3"])
def test_ask_prunes_a_picture_in_its_own_size(family: str, folder: Path, picture: Path, tmp_path: Path) -> None:
    name = folder if family == "qwen2.5" else save(tmp_path, family)
    asked = run("ask", picture, picture, "what is this", "--model", name, "--retain", "1/2", "--compare", "--json")
    assert asked.exit_code == 0, asked.output
    found = json.loads(asked.stdout)
    assert (found["visual_tokens"], found["model"]["visual_tokens_per_image"]) == (80, None)
    assert found["pruned"]["average_tokens"] <= 40
    assert found["pruned"]["answer"] != found["unpruned"]["answer"]


def test_whole_budget_answers_as_the_model_alone(folder: Path, picture: Path) -> None:
    asked = run("ask", picture, "what is this", "--model", folder, "--retain", "100%", "--compare", "--json")
    found = json.loads(asked.stdout)
    assert found["pruned"]["answer"] == found["unpruned"]["answer"]
    assert found["pruned"]["average_tokens"] == 40


def test_batches_of_pictures_of_several_sizes_compare(folder: Path, picture: Path, tmp_path: Path) -> None:
    tall = tmp_path / "tall.png"
    with Image.open(picture) as whole:
        whole.resize((24, 72)).save(tall)
    lines = [{"image": str(path), "question": "what is this", "answer": "w9"} for path in (picture, tall)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, [*lines, {"image": "none.png", "question": "is", "answer": "w9"}])))
    given = ("--method", "vitcop,visionzip", "--retain", "1/2", "--max-new-tokens", "2", "--timing", "1")
    result = run("compare", "--questions", questions, "--model", folder, *given, "--out", tmp_path / "found", "--json")
    assert json.loads(result.stdout)["comparison"]["questions"] == 2, result.output
    answers = [json.loads(line) for line in (tmp_path / "found" / "answers.jsonl").read_text().splitlines()]
    # 3 x 9 tokens, and what an image of 64 x 40 pixels has: as many pixels as they take.
    assert [line["sizes"] for line in answers if "sizes" in line] == [[[40, 64]], [[72, 24]]]
    counts = {row["name"]: row["tokens"] for row in json.loads(result.stdout)["comparison"]["variants"]}
    assert counts["unpruned"] == (40 + 27) / 2
    assert all(tokens <= (40 + 27) / 4 for name, tokens in counts.items() if name != "unpruned")
    batch = run("ask", "--batch", questions, "--model", folder, "--retain", "1/2", "--max-new-tokens", "2")
    found = [json.loads(line) for line in batch.stdout.splitlines()]
    assert [line.get("visual_tokens") for line in found if "visual_tokens" in line] == [40, 27]


def test_show_draws_the_squares_that_survive(folder: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    result = run("show", picture, "--model", folder, "--retain", "1/2", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["visual_tokens"] == 40
    again = run("show", picture, "--model", folder, "--retain", "1/2", "--out", out, "--force")
    assert "visual tokens by the size of an image" in said(again)
    # The picture and three stages, each 8 squares of 42 pixels wide.
    with Image.open(out) as drawn:
        assert drawn.width == 4 * 8 * 42 + 5 * 18


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_analyze_sees_what_each_square_receives(family: str, folder: Path, picture: Path, tmp_path: Path) -> None:
    name = folder if family == "qwen2.5" else save(tmp_path / family, family)
    out = tmp_path / "analysis"
    result = run("analyze", picture, "--model", name, "--question", "what is this", "--out", out)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "data.json").read_text())["visual_tokens"] == [40]


def test_observed_saliency_is_what_stage_one_ranks_by() -> None:
    from vitcop_llava.tools.analysis.observing import observe

    model, inputs = build("qwen2.5"), given(MIXED[:2], "qwen2.5")
    units = [unit for row in observe(model, **inputs) for unit in row.cls_attention]
    with torch.no_grad():
        expected = received(model, inputs)
    for unit, paid in zip(units, expected, strict=True):
        np.testing.assert_allclose(unit, paid, rtol=1e-4)


def test_clip_is_refused_with_the_way_out(folder: Path) -> None:
    from vitcop_llava.tools.media.video_support import Clip
    from vitcop_llava.tools.model.answer import prepare

    clip = Clip(Path("a.mp4"), np.zeros((2, 8, 8, 3), np.uint8), np.arange(2.0), np.arange(2), 2, "none")
    with pytest.raises(ValueError, match="prepare its clips with transformers' own processor, which needs torchvision"):
        prepare(load(str(folder), device="cpu"), [clip], "what is this")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": 8}, "an image processor with patch_size 4, as its vision tower has, got 8"),
        ({"merge_size": 1}, "an image processor with merge_size 2"),
        ({"temporal_patch_size": 1}, "an image processor with temporal_patch_size 2"),
        ({"size": {"shortest_edge": 64, "longest_edge": 10**9}}, "a processor with size from 1 to 16777216 pixels"),
    ],
)
def test_processor_that_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(str(save(tmp_path, "qwen2.5", **changed)), device="cpu")


def test_processor_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "qwen2.5")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="a processor with a chat template, got none"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("shape", ["small-qwen2.5", "small-qwen3"])
def test_bench_measures_squares(shape: str) -> None:
    given = ("--repeats", 1, "--dtype", "float32", "--device", "cpu", "--text-tokens", 6, "--new-tokens", 2)
    result = run("bench", *given, "--shape", shape, "--method", "vitcop", "--retain", "50%", "--image-size", "60x113")
    assert result.exit_code == 0, result.output
    # Sides are rounded to whole tokens of 28 x 28 pixels.
    assert "8 visual tokens and 6 of text" in said(result)
    assert "--image-size 56x112" in said(result)
