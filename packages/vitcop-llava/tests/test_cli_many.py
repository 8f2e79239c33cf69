"""``vitcop batch``, with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vitcop_core.journal import partial_path
from vitcop_llava.tools.cli import app
from vitcop_llava.tools.cli.results import Output

QUESTION = "What color is the circle?"
BUDGET = ["--retain", "20%"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    paths = [folder / name for name in ("a.png", "b.jpg", "c.png", "more/d.webp", "more/e.PNG")]
    for number, path in enumerate(paths):
        Image.linear_gradient("L").rotate(50 * number).resize((96, 96)).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(paths[0].read_bytes())
    return paths


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*lines: Any) -> Path:
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
        return path

    return make


@pytest.fixture
def seven(images: list[Path], write: Any) -> Path:
    """Seven questions, the longest first."""
    found: Path = write(
        *({"image": str(images[n % 5]), "question": QUESTION + " and where" * (7 - n), "id": f"q{n}"} for n in range(7))
    )
    return found


@pytest.fixture
def run(checkpoint: Path) -> Callable[..., Result]:
    def make(*arguments: object, command: str = "batch") -> Result:
        given = [command, *map(str, arguments), "--device", "cpu", "--max-new-tokens", "3"]
        return CliRunner().invoke(app, [*given, *([] if "--model" in arguments else ["--model", str(checkpoint)])])

    return make


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("more", [[], ["--batch-size", "1"], ["--batch-size", "3"], ["--workers", "2"]])
def test_batch_gives_the_answers_of_ask(run: Any, seven: Path, tmp_path: Path, more: list[str]) -> None:
    out, wanted = tmp_path / "out.jsonl", tmp_path / "wanted.jsonl"
    result = run(seven, "--out", out, *BUDGET, *more)
    assert result.exit_code == 0, result.output
    assert "7 of 7 lines answered" in result.stdout
    assert run("--batch", seven, "--out", wanted, *BUDGET, command="ask").exit_code == 0
    for line, other in zip(results(out), results(wanted), strict=True):
        same = ("line", "id", "images", "question", "answer", "visual_tokens")
        assert {name: line[name] for name in same} == {name: other[name] for name in same}
        assert line["average_tokens"] == other["pruned"]["average_tokens"]
        assert set(line) == {*same, "average_tokens"}


def test_folder_is_asked_one_thing_about_each_image(run: Any, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = run(images[0].parent, "--prompt", QUESTION, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["lines"], told["failed"], told["taken_over"], told["out"]) == (5, 0, 0, str(out))
    found = results(out)
    assert [line["id"] for line in found] == ["a.png", "b.jpg", "c.png", "more/d.webp", "more/e.PNG"]
    assert [line["images"] for line in found] == [[str(path)] for path in images]
    assert {line["question"] for line in found} == {QUESTION}


def test_lines_without_a_question_ask_the_prompt(run: Any, images: list[Path], write: Any, tmp_path: Path) -> None:
    asked = write({"image": str(images[0])}, {"image": str(images[0]), "question": "Where is it?"})
    assert run(asked, "--prompt", QUESTION, "--out", tmp_path / "out.jsonl").exit_code == 0
    assert [line["question"] for line in results(tmp_path / "out.jsonl")] == [QUESTION, "Where is it?"]


def test_bad_lines_have_errors_and_the_others_answers(run: Any, images: list[Path], write: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    good = {"image": str(images[0]), "question": QUESTION}
    bad: list[tuple[Any, str]] = [
        ("{image: 1}\n", "must be a JSON object"),
        ({"image": "none.png", "question": QUESTION}, "image must be an existing file, got none.png"),
        ({"image": str(broken), "question": QUESTION}, "must be a whole file"),
        ({"image": str(images[0]), "question": "Where is <image>?"}, "must not hold the placeholder"),
        ({"image": str(images[0])}, '"question" must be a text'),
    ]
    out = tmp_path / "out.jsonl"
    result = run(write(good, *(line for line, _ in bad), good), "--out", out, *BUDGET)
    assert result.exit_code == 1, result.output
    assert "2 of 7 lines answered" in result.stdout
    first, *errors, last = results(out)
    assert first["answer"] == last["answer"]
    for number, (line, (_, said)) in enumerate(zip(errors, bad, strict=True), start=2):
        assert said in line["error"]
        assert (line["line"], "answer" in line) == (number, False)
        assert f"questions.jsonl, line {number}: " in result.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "SOURCE must be an existing file of JSON lines, or a folder, got none.jsonl"),
        (["{folder}"], "--prompt must be given with a folder"),
        (["{file}", "--prompt", " "], "--prompt must be a text that is not empty"),
        (["{empty}", "--prompt", "x"], "SOURCE must be a folder with images or videos in it"),
        (["{file}", "--out", "{file}"], "--out must not be the file of SOURCE"),
        (["{file}", "--out", ""], "--out must be"),
        (["{file}", "--out", "none/out.jsonl"], "there is no folder none"),
        (["{file}", "--retain", "1%"], "--retain 1.0%: it must be from "),
        (["{file}", "--model", "no/such/folder"], "model must be an existing folder"),
        (["{file}", "--workers", "1", "--device", "cpu,cpu"], "--workers must be at least one for each of 2 devices"),
        (["{file}", "--ray", "auto", "--device", "cpu,cpu"], "--device must be one with --ray"),
        (["{file}", "--frames", "4"], "--frames must be used with videos"),
        (["{file}", "--method", "fastest"], "--method must"),
    ],
)
def test_mistake_is_named_and_leaves_no_file(
    checkpoint: Path, images: list[Path], seven: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out.jsonl"
    empty.mkdir()
    names = {"{file}": seven, "{folder}": images[0].parent, "{empty}": empty}
    given = [str(names.get(argument, argument)) for argument in arguments]
    defaults = {"--out": str(out), "--model": str(checkpoint), "--device": "cpu"}
    more = [word for name, value in defaults.items() if name not in given for word in (name, value)]
    result = CliRunner().invoke(app, ["batch", *given, *more, "--json"])
    assert result.exit_code == 2
    assert said in json.loads(result.stdout)["error"]
    assert not out.exists()
    assert not partial_path(out).exists()


def test_ray_that_is_not_installed_is_named(run: Any, seven: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    result = run(seven, "--out", tmp_path / "out.jsonl", "--ray", "auto", "--json")
    assert result.exit_code == 2
    assert 'pip install "vitcop-llava[ray]"' in json.loads(result.stdout)["error"]


def interrupted(run: Any, arguments: list[object], after: int, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A run that ends as by Ctrl-C once so many batches are written."""
    add, written = Output.add, list[Any]()

    def count(self: Output, *batch: dict[str, Any]) -> None:
        add(self, *batch)
        written.append(batch)
        if len(written) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "add", count)
        result: Result = run(*arguments)
        return result


@pytest.mark.parametrize("after", [1, 3, 4])
def test_run_goes_on_with_every_line_once(
    run: Any, seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "out.jsonl"
    arguments: list[object] = [seven, "--out", out, "--batch-size", "2", *BUDGET]
    stopped = interrupted(run, arguments, after, monkeypatch)
    assert stopped.exit_code != 0
    assert "the same command with --resume goes on" in " ".join(stopped.stderr.split())
    assert not out.exists()
    with partial_path(out).open("a") as journal:
        journal.write('{"line": 6, "answer": "cut o')  # as a disk that was full leaves it
    before = results_of_journal(out)
    assert [line["line"] for line in before][:2] == [7, 6]  # the shortest first
    assert "--resume goes on with it" in " ".join(run(*arguments).stderr.split())
    resumed = run(seven, "--out", out, *BUDGET, "--resume", "--batch-size", "3", "--json")  # no answer depends on it
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["taken_over"] == len(before) == min(2 * after, 7)
    found = results(out)
    assert [(line["line"], line["id"]) for line in found] == [(n + 1, f"q{n}") for n in range(7)]
    assert sorted(before, key=lambda line: int(line["line"])) == [line for line in found if line in before]
    assert not partial_path(out).exists()
    assert "which is whole" in run(*arguments, "--resume").stderr.replace("\n", "")


def results_of_journal(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in partial_path(out).read_bytes().split(b"\n")[1:-1]]


@pytest.mark.parametrize(
    "changed",
    [["--retain", "1/3"], ["--method", "fastv"], ["--max-new-tokens", "4"], ["--prompt", "x"], ["--dtype", "bfloat16"]],
)
def test_other_settings_are_not_gone_on_with(
    checkpoint: Path, run: Any, seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: list[str]
) -> None:
    out = tmp_path / "out.jsonl"
    interrupted(run, [seven, "--out", out], 1, monkeypatch)
    before = partial_path(out).read_bytes()
    given = ["batch", str(seven), "--out", str(out), "--model", str(checkpoint), "--device", "cpu"]
    result = CliRunner().invoke(app, [*given, "--max-new-tokens", "3", *changed, "--resume"])
    assert result.exit_code == 2
    assert "must go on with the same options and versions" in " ".join(result.stderr.split())
    assert partial_path(out).read_bytes() == before


@pytest.mark.parametrize("keep", [4, 9])
def test_other_questions_are_not_gone_on_with(
    run: Any, seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    out = tmp_path / "out.jsonl"
    interrupted(run, [seven, "--out", out, "--batch-size", "2"], 1, monkeypatch)
    lines = seven.read_text().splitlines(keepends=True)
    seven.write_text("".join(lines[:keep] if keep < 7 else [*lines[:-1], lines[-1].replace("circle", "square")]))
    result = run(seven, "--out", out, "--resume")
    assert result.exit_code == 2
    assert f"got a change in line {6 if keep < 7 else 7}" in " ".join(result.stderr.split())


def test_failed_lines_are_asked_again(
    run: Any, images: list[Path], write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, out = tmp_path / "late.png", tmp_path / "out.jsonl"
    asked = write(*({"image": str(path), "question": QUESTION} for path in (images[0], late, images[2])))
    interrupted(run, [asked, "--out", out], 1, monkeypatch)
    late.write_bytes(images[1].read_bytes())
    assert run(asked, "--out", out, "--resume").exit_code == 0
    assert [line["line"] for line in results(out) if "answer" in line] == [1, 2, 3]
