"""``vitcop ask --batch``, and the commands on LLaVA-NeXT, with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vitcop_core.journal import partial_path
from vitcop_llava import tile_image
from vitcop_llava.tools.cli import app
from vitcop_llava.tools.cli.requests import MAX_LINE
from vitcop_llava.tools.cli.results import Output
from vitcop_llava.tools.model.loading import load
from vitcop_llava.tools.model.processors import ModelError

QUESTION = "What color is the circle?"
PINPOINTS = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
SIZES = [(96, 96), (131, 40), (30, 200)]


@pytest.fixture(scope="module")
def next_checkpoint(tmp_path_factory: pytest.TempPathFactory, next_model: Any, next_processor: Any) -> Path:
    folder = tmp_path_factory.mktemp("next")
    next_model.save_pretrained(folder)
    next_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "square.png", folder / "wide.jpg", folder / "tall.png"]
    for path, size in zip(paths, SIZES, strict=True):
        Image.linear_gradient("L").resize(size).save(path)
    return paths


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*lines: Any) -> Path:
        path = tmp_path / "batch.jsonl"
        path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
        return path

    return make


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ask", *map(str, arguments), "--device", "cpu", "--max-new-tokens", "3"])


def results(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("where", ["stdout", "out"])
@pytest.mark.parametrize("family", ["llava", "next"])
def test_batch_answers_every_line(
    checkpoint: Path, next_checkpoint: Path, images: list[Path], write: Any, tmp_path: Path, family: str, where: str
) -> None:
    asked = [[images[0]], [images[1], images[2]], [images[2]]]
    batch = write(
        {"image": str(images[0]), "question": QUESTION, "id": "first"},
        "\n",
        {"images": [str(image) for image in asked[1]], "question": QUESTION, "id": 7, "extra": None},
        json.dumps({"image": str(images[2]), "question": QUESTION}),
    )
    model, out = {"llava": checkpoint, "next": next_checkpoint}[family], tmp_path / "out.jsonl"
    result = run("--batch", batch, "--model", model, "--retain", "20%", *(["--out", out] if where == "out" else []))
    assert result.exit_code == 0, result.output
    found = results(result.stdout if where == "stdout" else out.read_text())
    assert [(line["line"], line.get("id")) for line in found] == [(1, "first"), (3, 7), (4, None)]
    for line, paths in zip(found, asked, strict=True):
        single = json.loads(run(*paths, QUESTION, "--model", model, "--retain", "20%", "--json").stdout)
        assert line["images"] == single["images"]
        assert line["answer"] == single["pruned"]["answer"]
        assert line["pruned"]["tokens_per_layer"] == single["pruned"]["tokens_per_layer"]
    if where == "out":
        assert result.stdout == ""


BAD: dict[str, tuple[Any, str]] = {
    "json": ("{image: 1}\n", "must be a JSON object"),
    "list": ("[1]\n", "must be a JSON object such as"),
    "nested": ("[" * 100_000 + "\n", "must be a JSON object"),
    "bytes": ('{"image": "\\ud800", "question": "x"}\n', "image"),
    "no-image": ({"question": QUESTION}, 'must have either "image" or "images"'),
    "both": ({"image": "a", "images": ["a"], "question": QUESTION}, 'either "image" or "images"'),
    "no-images": ({"images": [], "question": QUESTION}, '"images" a list of them, got []'),
    "number": ({"image": 5, "question": QUESTION}, "must be a file name"),
    "no-question": ({"image": "{image}"}, '"question" must be a text that is not empty, got None'),
    "empty": ({"image": "{image}", "question": " "}, '"question" must be a text'),
    "id": ({"image": "{image}", "question": QUESTION, "id": [1]}, '"id" must be a text or an integer'),
    "missing": ({"image": "none.png", "question": QUESTION}, "image must be an existing file, got none.png"),
    "not-an-image": ({"image": "{batch}", "question": QUESTION}, "must be one of"),
    "placeholder": ({"image": "{image}", "question": "Where is <image>?"}, "must not hold the placeholder"),
    "long": ({"image": "{image}", "question": "x" * MAX_LINE}, f"must have at most {MAX_LINE} bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_batch_reports_a_bad_line_and_goes_on(
    checkpoint: Path, images: list[Path], write: Any, tmp_path: Path, case: str
) -> None:
    bad, said = BAD[case]
    good = {"image": str(images[0]), "question": QUESTION}
    if isinstance(bad, dict):
        names = {"{image}": str(images[0]), "{batch}": str(tmp_path / "batch.jsonl")}
        bad = {key: names.get(value, value) if isinstance(value, str) else value for key, value in bad.items()}
    result = run("--batch", write(good, bad, good), "--model", checkpoint, "--retain", "20%")
    assert result.exit_code == 1
    first, second, third = results(result.stdout)
    assert said in second["error"]
    assert (second["line"], "answer" in second) == (2, False)
    assert first["answer"] == third["answer"]
    assert "batch.jsonl, line 2: " in result.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "{image}"], "which is no text; `vitcop ask FILE QUESTION`"),
        (["--batch", "none.jsonl"], "--batch must be an existing file of JSON lines, got none.jsonl"),
        (["--batch", "9" * 400], "path must be a name that the system takes, got 999"),
        (["--batch", "{batch}", "{image}", QUESTION], "--batch must be given alone"),
        (["--batch", "{batch}", "--out", "{batch}"], "--out must not be the file of --batch"),
        (["--batch", "{batch}", "--out", "{batch}", "--force"], "--out must not be the file of --batch"),
        (
            ["--batch", "{batch}", "--out", "none/out.jsonl"],
            "--out must be a file that can be written, got none/out.jsonl: there is no folder none",
        ),
        (["--batch", "{batch}", "--retain", "1%"], "--retain 1.0%: it must be from "),
        (["{image}", QUESTION, "--out", "x.jsonl"], "--out must be given with --batch"),
    ],
)
def test_batch_names_a_mistake(
    checkpoint: Path, images: list[Path], write: Any, arguments: list[str], said: str
) -> None:
    batch = write({"image": str(images[0]), "question": QUESTION})
    given = [argument.format(batch=batch, image=images[0]) for argument in arguments]
    result = run(*given, "--model", checkpoint, "--json")
    assert result.exit_code == 2
    assert said in json.loads(result.stdout)["error"]
    assert json.loads(batch.read_text())["question"] == QUESTION


def test_batch_overwrites_with_force(checkpoint: Path, images: list[Path], write: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    batch = write({"image": str(images[0]), "question": QUESTION})
    assert run("--batch", batch, "--out", out, "--force", "--model", checkpoint).exit_code == 0
    assert len(results(out.read_text())) == 1


def test_ask_runs_llava_next(next_checkpoint: Path, images: list[Path]) -> None:
    result = run(*images, QUESTION, "--model", next_checkpoint, "--retain", "20%", "--compare", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    tilings = [tile_image(h, w, pinpoints=PINPOINTS, tile_size=48, patch_size=8) for w, h in SIZES]
    assert content["visual_tokens"] == sum(tiling.tokens for tiling in tilings)
    assert content["model"]["class"] == "LlavaNextForConditionalGeneration"
    assert content["model"]["visual_tokens_per_image"] == 180
    assert content["unpruned"]["prefill_macs"] > content["pruned"]["prefill_macs"]
    table = run(images[0], QUESTION, "--model", next_checkpoint, "--retain", "20%")
    assert "up to 180 visual tokens an image" in " ".join(table.stdout.split())


def test_ask_names_an_image_that_the_budget_does_not_fit(next_checkpoint: Path, images: list[Path]) -> None:
    result = run(images[2], QUESTION, "--model", next_checkpoint, "--retain", "70", "--json")
    assert result.exit_code == 2
    assert "--retain 70: an image of 200 x 30 pixels with" in json.loads(result.stdout)["error"]


def test_loading_names_a_processor_that_tiles_otherwise(
    next_checkpoint: Path, next_processor: Any, tmp_path: Path
) -> None:
    for file in next_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["image_grid_pinpoints"] = [[48, 96], [96, 48], [48, 144]]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="must have an image processor that tiles"):
        load(str(tmp_path))


@pytest.mark.parametrize("number", range(3))
def test_show_draws_an_image_in_tiles(next_checkpoint: Path, images: list[Path], tmp_path: Path, number: int) -> None:
    out = tmp_path / "out.png"
    arguments = ["show", images[number], "--model", next_checkpoint, "--out", out, "--json", "--retain", "20%"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    width, height = SIZES[number]
    assert content["visual_tokens"] == tile_image(height, width, pinpoints=PINPOINTS, tile_size=48, patch_size=8).tokens
    with Image.open(out) as picture:
        assert picture.width > 4 * 200
        assert len(picture.getcolors(2**20) or ()) > 100


@pytest.fixture
def three(images: list[Path], write: Any) -> Path:
    found: Path = write(*({"image": str(path), "question": QUESTION, "id": path.stem} for path in images))
    return found


def interrupted(arguments: list[object], after: int, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A run that ends as by Ctrl-C once that many results are written."""
    add, written = Output.add, list[Any]()

    def count(self: Output, result: dict[str, Any]) -> None:
        add(self, result)
        written.append(result)
        if len(written) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "add", count)
        return run(*arguments)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_batch_resumes_with_every_line_once(
    checkpoint: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "out.jsonl"
    arguments: list[object] = ["--batch", three, "--out", out, "--model", checkpoint, "--retain", "20%"]
    stopped = interrupted(arguments, after, monkeypatch)
    assert stopped.exit_code != 0
    assert "the same command with --resume goes on" in " ".join(stopped.stderr.split())
    assert not out.exists()
    before = results(partial_path(out).read_text())[1:]
    assert [line["line"] for line in before] == [*range(1, after + 1)]
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--resume goes on with it, --force starts again" in " ".join(refused.stderr.split())
    assert run(*arguments, "--resume").exit_code == 0
    after_all = results(out.read_text())
    assert [(line["line"], line["id"]) for line in after_all] == [(1, "square"), (2, "wide"), (3, "tall")]
    assert after_all[:after] == before  # times among it: these were not asked again
    assert not partial_path(out).exists()
    whole = run(*arguments, "--resume")
    assert whole.exit_code == 2
    assert "which is whole" in whole.stderr.replace("\n", "")


def test_batch_resumes_from_nothing(checkpoint: Path, three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("--batch", three, "--out", out, "--model", checkpoint, "--resume").exit_code == 0
    assert len(results(out.read_text())) == 3


def test_batch_asks_failed_lines_again(
    checkpoint: Path, images: list[Path], write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, out = tmp_path / "late.png", tmp_path / "out.jsonl"
    batch = write(*({"image": str(path), "question": QUESTION} for path in (images[0], late, images[2])))
    arguments: list[object] = ["--batch", batch, "--out", out, "--model", checkpoint]
    interrupted(arguments, 3, monkeypatch)
    late.write_bytes(images[1].read_bytes())
    assert run(*arguments, "--resume").exit_code == 0
    assert [line["line"] for line in results(out.read_text()) if "answer" in line] == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    ["[]", "7", '{"answer": "red"}', '{"line": "2", "answer": "red"}', '{"line": 2}', '{"line": 2, "answer": null}'],
)
def test_line_of_a_journal_that_is_no_result_is_asked_again(
    checkpoint: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    out = tmp_path / "out.jsonl"
    arguments: list[object] = ["--batch", three, "--out", out, "--model", checkpoint]
    interrupted(arguments, 2, monkeypatch)
    header, first, _ = partial_path(out).read_text().splitlines()
    partial_path(out).write_text("\n".join([header, first, line, ""]))
    assert run(*arguments, "--resume").exit_code == 0
    assert [each["line"] for each in results(out.read_text())] == [1, 2, 3]


def test_force_keeps_the_old_results_until_the_new_are_whole(
    checkpoint: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")
    arguments: list[object] = ["--batch", three, "--out", out, "--model", checkpoint]
    interrupted([*arguments, "--force"], 2, monkeypatch)
    assert out.read_text() == "old\n"
    assert run(*arguments, "--resume").exit_code == 0
    assert len(results(out.read_text())) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--retain", "1/3"], "must go on with the same options and versions"),
        (["--compare"], "must go on with the same options and versions"),
        (["--max-new-tokens", "4"], "must go on with the same options and versions"),
        (["--force"], "--resume must not be given with --force"),
    ],
)
def test_batch_refuses_to_resume_another_run(
    checkpoint: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: list[str], said: str
) -> None:
    out = tmp_path / "out.jsonl"
    arguments: list[object] = ["--batch", three, "--out", out, "--model", checkpoint]
    interrupted(arguments, 1, monkeypatch)
    given = [*map(str, arguments), "--device", "cpu", "--max-new-tokens", "3", *changed, "--resume"]
    result = CliRunner().invoke(app, ["ask", *given])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_batch_refuses_to_resume_other_questions(
    checkpoint: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    arguments: list[object] = ["--batch", three, "--out", out, "--model", checkpoint]
    interrupted(arguments, 2, monkeypatch)
    three.write_text(three.read_text().replace("circle", "square"))
    result = run(*arguments, "--resume")
    assert result.exit_code == 2
    assert "got a change in line" in " ".join(result.stderr.split())


def test_resume_goes_with_a_file(images: list[Path], three: Path) -> None:
    assert "--resume must be given with --batch" in run(images[0], QUESTION, "--resume").stderr
    assert "--resume must be given with --out" in run("--batch", three, "--resume").stderr
