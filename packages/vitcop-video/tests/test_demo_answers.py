"""The demo video model that comes with the package: it loads, answers, and answers alike in a batch and pruned."""

from __future__ import annotations

import json
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, LlavaNextVideoForConditionalGeneration

from vitcop_core import ViTCoP
from vitcop_llava.pruner import prune
from vitcop_video import read_video
from vitcop_video.demo import DEMO_FOLDER
from vitcop_video.demo.evaluate import Answerer, main
from vitcop_video.demo.files import write_demo_clip
from vitcop_video.demo.questions import held_out


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(DEMO_FOLDER)


def test_folder_holds_no_code_and_is_small() -> None:
    files = [path for path in DEMO_FOLDER.iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jinja", ".log", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 16 * 2**20
    for path in DEMO_FOLDER.glob("*.json"):
        assert "auto_map" not in json.loads(path.read_text())


def test_folder_loads_by_the_auto_class() -> None:
    model = AutoModelForImageTextToText.from_pretrained(DEMO_FOLDER)
    assert isinstance(model, LlavaNextVideoForConditionalGeneration)


def test_held_out_questions_are_right_nine_times_of_ten(answerer: Answerer) -> None:
    asked = held_out(60)
    answers = list(answerer.answers(asked, batch=20))
    assert sum(answer == item.answer for answer, item in zip(answers, asked, strict=True)) >= 54


def test_answers_do_not_depend_on_the_batch(answerer: Answerer) -> None:
    asked = held_out(6)
    together = list(answerer.answers(asked, batch=6))
    assert together == [answer for item in asked for answer in answerer.answers([item], batch=1)]
    with prune(answerer.model, ViTCoP(retention_ratio=Fraction(1, 9), layers=(1, 6), change_share=0.5)):
        together = list(answerer.answers(asked, batch=6))
        assert together == [answer for item in asked for answer in answerer.answers([item], batch=1)]


def test_answers_to_a_file_are_those_to_its_frames(answerer: Answerer, tmp_path: Path) -> None:
    for item in held_out(4):
        video = read_video(write_demo_clip(tmp_path / f"{item.seed}.mp4", item.seed), frames=8)
        inputs = answerer.processor(answerer.prompt(item.text), videos=[video.frames])
        output = answerer.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        text = answerer.processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [text.strip()] == list(answerer.answers([item], batch=1))


def test_evaluation_is_stored_with_its_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.json"
    variants = ["layers 2 and 6", "layers 1 and 6, both"]
    main(["--clips", "4", "--budgets", "1", "1/18", "--variants", *variants, "--out", str(path)])
    stored = json.loads(path.read_text())
    assert stored["command"].endswith("--clips 4 --budgets 1 1/18 --variants 'layers 2 and 6' 'layers 1 and 6, both'")
    assert stored["environment"]["packages"]["torch"] == version("torch")
    whole, unreachable, pruned = stored["scores"]
    assert whole["tokens_per_layer"] == [288] * 8
    assert sum(whole["questions"].values()) == sum(pruned["questions"].values()) == 4
    assert unreachable["unreachable"]
    assert pruned["average_tokens"] == pytest.approx(16, abs=1)
    capfd.readouterr()
