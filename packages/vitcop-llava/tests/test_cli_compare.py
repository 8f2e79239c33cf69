"""``vitcop compare`` on models with random weights: tables, files, faults by line, and every mistake it should name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.comparison.answers import AnswerFile

QUESTION = "What color is the circle?"
FEW = ["--method", "fastv, vitcop", "--retain", "1/3"]
SHORT = ["--limit", 12, "--timing", 0, "--batch-size", 5, "--max-new-tokens", 2]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("good.png")
    Path("bad.png").write_bytes(b"no picture")


def compare(model: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments), "--model", str(model), "--device", "cpu"])


def compare_json(model: Path, *arguments: object) -> dict[str, Any]:
    result = compare(model, *arguments, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def write(*lines: Any) -> Path:
    path = Path("questions.jsonl")
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_compare_writes_table_report_plot_and_answers(checkpoint: Path) -> None:
    given = ("--retain", "1/3,1/18", "--timing", 1, "--limit", 6, "--max-new-tokens", 2)
    result = compare(checkpoint, *given)
    assert result.exit_code == 0, result.output
    for words in ("unpruned", "ViTCoP", "SparseVLM", "47.38", "out of reach", "6 questions about 2 images"):
        assert words in result.stdout
    assert "this is the demo model" in result.stderr
    folder = Path("vitcop-comparison")
    with Image.open(folder / "tradeoff.png") as picture:
        assert picture.width > 800
    report = (folder / "report.md").read_text()
    for words in ("| FastV | 1/18 |  | out of reach | nearest: 19 tokens |", "retention_ratio must be", "## Settings"):
        assert words in report
    stored = json.loads((folder / "result.json").read_text())
    assert stored["command"].startswith("vitcop compare --model")
    assert stored["command"].endswith("--retain 1/3,1/18 --limit 6 --max-new-tokens 2 --timing 1 --device cpu")
    assert stored["environment"]["packages"]["torch"]
    assert stored["timing"]["variants"]["unpruned"]["prefill_seconds"] > 0
    header, *lines = (json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines())
    able = [row["name"] for row in stored["comparison"]["variants"] if row["problem"] is None]
    assert list(header["variants"]) == able
    assert [line["number"] for line in lines] == list(range(1, 7))
    assert all(list(line["said"]) == able for line in lines)


def test_compare_says_the_same_twice(checkpoint: Path) -> None:
    first, second = (
        compare_json(checkpoint, *SHORT[2:], "--limit", 4, "--out", name)["comparison"] for name in ("one", "two")
    )
    assert first == second
    for name in ("tokens", "macs", "kv_bytes"):
        values = [row[name] for row in first["variants"] if row["problem"] is None]
        assert max(values) == values[0]


def test_compare_counts_right_answers_by_kind(checkpoint: Path) -> None:
    # A model with random weights answers nothing right, so its answers are taken for the right ones.
    lines = [{"image": "good.png", "question": QUESTION, "answer": "x", "kind": "ab"[n % 2]} for n in range(12)]
    given = ("--method", "fastv", "--retain", "1/3", *SHORT[2:])
    compare_json(checkpoint, "--questions", write(*lines), *given, "--out", "first")
    said = [json.loads(line)["said"] for line in Path("first/answers.jsonl").read_text().splitlines()[1:]]
    for line, answers in zip(lines, said, strict=True):
        line["answer"] = f" {answers['unpruned'].upper()}. "
    rows = compare_json(checkpoint, "--questions", write(*lines), *given)["comparison"]["variants"]
    assert (rows[0]["right"], rows[0]["accuracy"]["value"]) == (12, 1.0)
    assert rows[0]["kinds"] == {"a": [6, 6], "b": [6, 6]}
    assert rows[1]["right"] == sum(answers["FastV, 1/3"] == answers["unpruned"] for answers in said)


def test_compare_goes_on_where_lines_cannot_be_asked(checkpoint: Path) -> None:
    good = {"image": "good.png", "question": QUESTION, "answer": "red", "id": "a"}
    path = write(
        good,
        {"image": "good.png", "question": QUESTION},
        {"image": "bad.png", "question": QUESTION, "answer": "red"},
        {"image": "none.png", "question": QUESTION, "answer": "red"},
        {"images": ["good.png"], "question": QUESTION, "answers": ["red", "blue"], "kind": "color"},
        {"image": "good.png", "question": "Where is <image>?", "answer": "red"},
        "\n",
        {"image": "good.png", "question": QUESTION, "answers": []},
        {"image": "good.png", "question": QUESTION, "answer": "red", "kind": 3},
        "{",
    )
    result = compare(checkpoint, "--questions", path, "--method", "visionzip", *SHORT[2:], "--json")
    assert result.exit_code == 1, result.output
    compared = json.loads(result.stdout)["comparison"]
    assert (compared["questions"], compared["images"]) == (2, 1)
    said = {fault["number"]: fault["error"] for fault in compared["faults"]}
    assert list(said) == [2, 3, 4, 6, 8, 9, 10]
    for number, words in {
        2: 'must have either "answer" or "answers"',
        3: "bad.png must be one of",
        4: "image must be an existing file, got none.png",
        6: "must not hold the placeholder",
        8: '"answers" a list of them, got []',
        9: '"kind" must be a text, got 3',
        10: "must be a JSON object",
    }.items():
        assert words in said[number]
        assert f"line {number}: " in result.stderr
    assert "line 3: image bad.png" in Path("vitcop-comparison/report.md").read_text()


def test_compare_resumes_what_was_interrupted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare_json(checkpoint, *SHORT, *FEW, "--out", "whole")
    add, calls = AnswerFile.add, list[Any]()

    def count(self: AnswerFile, results: Any) -> None:
        add(self, results)
        calls.append(results)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerFile, "add", count)
    result = compare(checkpoint, *SHORT, *FEW, "--out", "part")
    assert result.exit_code != 0
    assert "the same command with --resume goes on" in result.stderr.replace("\n", " ")
    assert "must not hold results yet" in compare(checkpoint, *SHORT, *FEW, "--out", "part").stderr
    other = compare(checkpoint, *SHORT, *FEW, "--out", "part", "--resume", "--max-new-tokens", 3)
    assert other.exit_code == 2
    assert "must go on with the same settings" in other.stderr.replace("\n", " ")
    again = compare_json(checkpoint, *SHORT, *FEW, "--out", "part", "--resume")
    assert again["comparison"] == whole["comparison"]
    assert len(calls) == 3
    assert Path("part/answers.jsonl").read_text() == Path("whole/answers.jsonl").read_text()


def test_compare_asks_again_what_it_could_not_have_found(checkpoint: Path) -> None:
    whole = compare_json(checkpoint, *SHORT, *FEW, "--out", "whole")["comparison"]
    path = Path("whole/answers.jsonl")
    answers = path.read_text()
    header, first, *rest = answers.splitlines()
    said = json.loads(first)["said"]
    others: list[dict[str, Any]] = [
        {"said": {"other": "red"}},
        {"said": said | {"more": "red"}},
        {"sizes": [[60]]},
        {"sizes": []},
    ]
    for other in others:
        path.write_text("\n".join([header, json.dumps(json.loads(first) | other), *rest, ""]))
        again = compare_json(checkpoint, *SHORT, *FEW, "--out", "whole", "--resume")
        assert again["comparison"] == whole
        assert path.read_text() == answers


def test_compare_takes_methods_with_settings(checkpoint: Path) -> None:
    given = ("--method", "ViTCoP(layers=(1, 6)), fastv", "--method", "vitcop(compat='official')", "--retain", "20%")
    rows = compare_json(checkpoint, *given, *SHORT)["comparison"]["variants"]
    assert [row["name"] for row in rows] == [
        "unpruned",
        "ViTCoP, layers=(1, 6), 20%",
        "FastV, 20%",
        "ViTCoP, compat='official', 20%",
    ]
    assert rows[1]["settings"] == "ViTCoP(retention_ratio=Fraction(1, 5), layers=(1, 6))"


@pytest.mark.parametrize("name", ["table-4", "table-7"])
def test_compare_knows_the_papers_ablations(checkpoint: Path, name: str) -> None:
    rows = compare_json(checkpoint, "--preset", name, *SHORT)["comparison"]["variants"]
    assert len(rows) == 6
    assert {row["retain"] for row in rows[1:]} == {"1/9"}
    reached = [row for row in rows[1:] if row["problem"] is None]
    assert all(14.5 < row["tokens"] <= 16 for row in reached)


def test_compare_runs_llava_next(next_model: Any, next_processor: Any, tmp_path: Path) -> None:
    folder = tmp_path / "next"
    next_model.save_pretrained(folder)
    next_processor.save_pretrained(folder)
    for number, size in enumerate([(96, 96), (131, 40), (30, 200)]):
        Image.linear_gradient("L").resize(size).save(f"{number}.png")
    pictures = [["0.png"], ["1.png"], ["2.png"], ["0.png", "2.png"]]
    path = write(*({"images": names, "question": QUESTION, "answer": "red"} for names in pictures))
    rows = compare_json(folder, "--questions", path, "--retain", "30%", "--max-new-tokens", 2, "--timing", 1)[
        "comparison"
    ]["variants"]
    assert [row["problem"] for row in rows] == [None] * 8
    assert all(row["tokens"] < 0.31 * rows[0]["tokens"] for row in rows[1:])
    assert all(row["tokens_per_layer"] is None for row in rows)
    # A number of tokens that a small image does not have is known when it is opened; other budgets go on.
    given = ("--questions", path, "--retain", "70,30%", "--method", "vitcop")
    rows = compare_json(folder, *given, *SHORT[2:], "--out", "other")["comparison"]["variants"]
    assert [row["problem"] is None for row in rows] == [True, False, True]
    assert "an image of" in rows[1]["problem"]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "method": (["--method", "vitcop2"], "--method must be one of vitcop, fastv"),
    "setting": (["--method", "fastv(depth=2)"], "--method: setting must be one of keep, layer for FastV, got 'depth'"),
    "value": (["--method", "vitcop(layers=2)"], "--method: layers must be a tuple"),
    "code": (["--method", "vitcop(layers=exit())"], "--method: layers must be a plain value"),
    "syntax": (["--method", "vitcop(layers="], "--method must be a name, or a name with settings"),
    "budget-in-method": (["--method", "vitcop(retained_tokens=3)"], "the budget of ViTCoP comes from --retain"),
    "fixed": (["--method", "fastv(keep=3)"], "--method: retained_tokens, retention_ratio"),
    "preset": (["--preset", "table-5"], "--preset must be one of equal-budgets, table-4, table-7, published"),
    "both": (["--preset", "table-4", "--method", "fastv"], "--preset must not be given with --method, got table-4"),
    "published": (["--preset", "published"], "must be used with a model of 576 visual tokens an image"),
    "published-retain": (
        ["--preset", "published", "--retain", "64"],
        "must not be given with --preset published",
    ),
    "retain": (["--retain", "1/0"], "--retain must be above 0 and at most 1 as a fraction"),
    "retain-word": (["--retain", "few"], "--retain must be a number of tokens (64), a share (1/9 or 11.1%) or all"),
    "unreachable": (["--method", "fastv", "--retain", "1/18"], "variants must hold a method that fits"),
    "file": (["--questions", "none.jsonl"], "--questions must be a file that can be read, got none.jsonl"),
    "empty": (["--questions", "empty.jsonl"], "must hold at least one question that can be asked, got none"),
    "out": (["--out", "good.png"], "--out must be a folder, got the file good.png"),
    "out-parent": (["--out", "none/there"], "--out must be a folder that can be made, got none/there"),
    "resume-force": (["--resume", "--force"], "--resume must not be given with --force"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_compare_names_a_mistake(checkpoint: Path, case: str) -> None:
    arguments, said = MISTAKES[case]
    Path("empty.jsonl").write_text("")
    result = compare(checkpoint, *arguments, *SHORT, "--json")
    assert result.exit_code == 2, result.output
    assert said in json.loads(result.stdout)["error"]


def test_compare_needs_a_question_that_can_be_asked(checkpoint: Path) -> None:
    path = write({"image": "bad.png", "question": QUESTION, "answer": "red"})
    result = compare(checkpoint, "--questions", path, *SHORT, "--json")
    assert result.exit_code == 2
    assert "must hold one that can be asked, got none of 1: image bad.png" in json.loads(result.stdout)["error"]


def test_compare_of_another_model_needs_questions_and_a_padding_token(checkpoint: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(checkpoint, tmp_path / "plain"))
    path = plain / "tokenizer_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "pad_token"}))
    result = compare(plain, *SHORT, "--json")
    assert result.exit_code == 2
    assert "--questions must be given with a model of your own" in json.loads(result.stdout)["error"]
    questions = write(*[{"image": "good.png", "question": QUESTION, "answer": "red"}] * 2)
    given = ("--questions", questions, "--method", "fastv", "--timing", 0)
    result = compare(plain, *given, "--json")
    assert result.exit_code == 2
    assert "--batch-size must be 1" in json.loads(result.stdout)["error"]
    assert compare(plain, *given, "--batch-size", 1).exit_code == 0
