"""``vitcop analyze`` on a model with random weights: what it writes, and when it refuses to."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vitcop_llava.tools.cli import app

FIGURES = ("figure-2a", "figure-2b", "figure-3a", "figure-4", "figure-6")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two images and a file of questions."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("a.png")
    Image.radial_gradient("L").save("b.jpg")
    lines: list[dict[str, Any]] = [
        {"image": "a.png", "question": "What color is the circle?", "answer": "red"},
        {"image": "a.png", "question": "What shape is red?", "answer": "star"},
        {"image": "b.jpg", "question": "Where is the red star?", "answer": "top"},
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return tmp_path


@pytest.fixture(scope="module")
def next_checkpoint(tmp_path_factory: pytest.TempPathFactory, next_model: Any, next_processor: Any) -> Path:
    folder = tmp_path_factory.mktemp("next")
    next_model.save_pretrained(folder)
    next_processor.save_pretrained(folder)
    return folder


def run(checkpoint: Path, *arguments: object) -> Result:
    given = ["analyze", *map(str, arguments), "--model", str(checkpoint), "--device", "cpu"]
    return CliRunner().invoke(app, given)


def stored(folder: str = "vitcop-analysis") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "data.json").read_text())
    return content


def test_analyze_writes_figures_numbers_and_a_report(checkpoint: Path, here: Path) -> None:
    result = run(checkpoint, "a.png", "b.jpg", "--questions", "asked.jsonl", "--top-k", "20,100%")
    assert result.exit_code == 0, result.output
    assert "Only 2 prompts were looked at" in result.stdout
    for name in FIGURES:
        assert (Path("vitcop-analysis") / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        with (Path("vitcop-analysis") / f"{name}.csv").open() as stream:
            assert len(list(csv.reader(stream))) > 1
    content = stored()
    assert content["command"].startswith("vitcop analyze a.png b.jpg --questions asked.jsonl --top-k 20,100%")
    assert content["environment"]["packages"]["torch"]
    assert (content["prompts"], content["visual_tokens"]) == (2, [144, 144])
    assert content["question"] == "What is in the picture?"
    scores = content["figure_2b"]["scores"]
    assert [score["share"] for score in scores] == [20, 100]
    # Keeping every token is not pruning.
    assert scores[1]["right"] == content["figure_2b"]["unpruned"]
    report = (Path("vitcop-analysis") / "report.md").read_text()
    assert content["verdict"]["text"] in report
    assert all(f"({path.name})" in report for path in Path("vitcop-analysis").glob("*.png"))


def test_analyze_takes_images_in_tiles(next_checkpoint: Path, here: Path) -> None:
    Image.linear_gradient("L").resize((100, 40)).save("wide.png")
    Path("asked.jsonl").write_text('{"images": ["wide.png", "a.png"], "question": "What shape?", "answer": "star"}')
    result = run(next_checkpoint, "wide.png", "a.png", "--questions", "asked.jsonl", "--top-k", "30")
    assert result.exit_code == 0, result.output
    content = stored()
    wide, square = content["visual_tokens"]
    assert 36 < wide < square  # the base, and the tiles without their padding
    assert content["figure_6"]["grid"] == [6, 6]
    assert content["figure_2b"]["scores"][0]["unreachable"] is None


def test_analyze_json_is_one_object(checkpoint: Path, here: Path) -> None:
    result = run(checkpoint, "a.png", "--out", "found", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    content = json.loads(result.stdout)
    assert content["folder"] == "found"
    assert sorted(content["files"]) == sorted(path.name for path in Path("found").iterdir())
    assert content["claims"][1]["here"].startswith("not measured: the images come without questions")
    assert content["verdict"]["advice"] in ("key_norm", "layers", "attention")
    assert not Path("found/figure-2b.png").exists()


def test_questions_bring_their_images(checkpoint: Path, here: Path) -> None:
    assert run(checkpoint, "--questions", "asked.jsonl", "--top-k", "50").exit_code == 0
    content = stored()
    assert (content["prompts"], content["question"], content["figure_2b"]["questions"]) == (2, None, 3)


def test_scenes_of_the_demo_model_are_asked_about(checkpoint: Path, here: Path) -> None:
    assert run(checkpoint, "--scenes", "2", "--top-k", "50").exit_code == 0
    content = stored()
    assert (content["prompts"], content["left_out"]) == (2, None)
    assert content["figure_2b"]["questions"] > 5
    assert "--scenes 2 --top-k 50" in content["command"]


def test_share_that_leaves_nothing_is_told_and_the_others_go_on(checkpoint: Path, here: Path) -> None:
    assert run(checkpoint, "--questions", "asked.jsonl", "--top-k", "0.5,50").exit_code == 0
    none, half = stored()["figure_2b"]["scores"]
    assert none["unreachable"]
    assert half["unreachable"] is None


def test_folder_is_written_into_with_force_alone(checkpoint: Path, here: Path) -> None:
    Path("found").mkdir()
    Path("found/notes.txt").write_text("precious")
    Path("found/figure-2b.png").write_text("of an earlier result")
    result = run(checkpoint, "a.png", "--out", "found")
    assert result.exit_code == 2
    assert "--out must be a new or empty folder, got found; --force writes into it" in result.stderr
    assert run(checkpoint, "a.png", "--out", "found", "--force").exit_code == 0
    assert Path("found/notes.txt").read_text() == "precious"
    assert not Path("found/figure-2b.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.png"], "image must be an existing file, got none.png"),
        (["asked.jsonl"], "asked.jsonl must be one of"),
        ([], "IMAGE or --questions must be given"),
        (["a.png", "--scenes", "3"], "--scenes must be given without images"),
        (["a.png", "--question", "  "], "--question must not be empty"),
        (["a.png", "--question", "an <image> more"], "must not hold the placeholder"),
        (["a.png", "--top-k", "0"], "--top-k must be percentages above 0 and up to 100"),
        (["a.png", "--top-k", "5,many"], "--top-k must be percentages above 0 and up to 100"),
        (["a.png", "--top-k", ""], "--top-k must be percentages"),
        (["a.png", "--top-k", "9" * 5000], "--top-k must be percentages above 0 and up to 100"),
        (["a.png", "--top-k", "5,0." + "0" * 5000 + "1"], "--top-k must be percentages above 0 and up to 100"),
        (["a.png", "--top-k", "5,."], "--top-k must be percentages above 0 and up to 100"),
        (["a.png", "--out", "a.png"], "--out must be a folder, got the file a.png"),
        (["a.png", "--out", "none/found"], "--out must be in an existing folder"),
        (["--questions", "none.jsonl"], "--questions must be an existing file of JSON lines, got none.jsonl"),
        (["--questions", "empty.jsonl"], "must hold at least one question"),
        (["--questions", "bad.jsonl"], 'bad.jsonl, line 2: line must have either "answer" or "answers"'),
        (["--questions", "worse.jsonl"], "worse.jsonl, line 1: line must be a JSON object"),
    ],
)
def test_analyze_names_a_mistake(checkpoint: Path, here: Path, arguments: list[str], said: str) -> None:
    Path("empty.jsonl").write_text("\n")
    asked = {"image": "a.png", "question": "What shape is red?"}
    Path("bad.jsonl").write_text(json.dumps(asked | {"answer": "star"}) + "\n" + json.dumps(asked) + "\n")
    Path("worse.jsonl").write_text("[]\n")
    result = run(checkpoint, *arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not Path("vitcop-analysis").exists()
