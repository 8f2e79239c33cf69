"""``vitcop scene``: the picture of a seed, and every question about it with its answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.demo.questions import questions_about
from vitcop_llava.tools.demo.scenes import render, sample_scene


def test_scene_draws_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["scene", "--seed", "33"])
    assert result.exit_code == 0, result.output
    with Image.open("scene-33.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(render(sample_scene(33))))
    assert all(question.text in result.stdout for question in questions_about(sample_scene(33)))


def test_scene_json_lists_questions_and_answers(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["scene", "--seed", "7", "--out", str(tmp_path / "a.png"), "--json"])
    content = json.loads(result.stdout)
    assert (content["seed"], content["picture"]) == (7, str(tmp_path / "a.png"))
    wanted = [(question.kind, question.text, question.answer) for question in questions_about(sample_scene(7))]
    found = [(each["kind"], each["question"], each["answer"]) for each in content["questions"]]
    assert found[:-1] == wanted
    assert found[-1][0] == "listing"


def test_scene_overwrites_with_force_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    arguments = ["scene", "--out", str(path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0


def test_scene_refuses_a_negative_seed() -> None:
    result = CliRunner().invoke(app, ["scene", "--seed", "-1", "--json"])
    assert result.exit_code == 2
    assert "--seed" in json.loads(result.stdout)["error"]
