"""What commands print: tables of any width, full disks, and what is told before anything slow is imported."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from vitcop_llava.tools.cli import app, output
from vitcop_llava.tools.cli.output import add_row, make_table, print_error, print_result

HEADINGS = ["method", "prefill (ms)", "token/question", "share kept", "accuracy, %", "visual tokens", "peak memory"]
ROWS = [["ViTCoP, layers 1 and 6", "13.9 ± 0.2 ms", "a/very/long/path/of/words", "100.0 %", "1", "2", "3.25 MiB"]]
LONG = "an answer of many words that goes on for longer than a line of a terminal, as answers of real models do"


def printed(width: int, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, rows: list[list[str]]) -> list[str]:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(
        output, "Console", lambda width=width: Console(width=width, force_terminal=is_terminal, color_system=None)
    )
    table = make_table(HEADINGS, title="A title that is longer than forty characters", caption="A caption.")
    for row in rows:
        add_row(table, *row)
    print_result(table)
    return stream.getvalue().rstrip().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_cell_is_torn_apart(width: int, is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(width, is_terminal, monkeypatch, ROWS)
    for cell in (*HEADINGS, *ROWS[0]):
        assert any(cell in line for line in lines), cell
    if is_terminal:
        assert all(len(line.rstrip()) <= width for line in lines)
    else:
        assert len(lines) == 7  # title, headings, rule, row and caption with blank lines: a pipe gets one table


def test_an_error_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("image must be a file, got a\nb\r\n" + "x" * 9000)
    said = capsys.readouterr().err
    assert said.startswith("Error: image must be a file, got a b xxx")
    assert said.count("\n") == 1
    assert len(said) < 1600


def test_long_cells_are_wrapped_at_words(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(80, True, monkeypatch, [["ViTCoP", LONG, "", "", "", "", ""]])
    assert all(word in " ".join(lines) for word in LONG.split())


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.linear_gradient("L").resize((96, 96)).save(path)
    return path


def test_a_full_disk_is_not_the_callers_mistake(checkpoint: Path, scene: Path, full_disk: Path, tmp_path: Path) -> None:
    batch = tmp_path / "batch.jsonl"
    batch.write_text((json.dumps({"image": str(scene), "question": "What color is the circle?"}) + "\n") * 40)
    model = ["--model", str(checkpoint), "--device", "cpu"]
    commands: list[list[str]] = [
        ["scene", "--out", "{out}/x.png"],
        ["show", str(scene), "--out", "{out}/x.png", *model],
        ["ask", "--batch", str(batch), "--out", "{out}/x.jsonl", "--max-new-tokens", "1", *model],
        ["compare", "--out", "{out}/c", "--limit", "4", "--timing", "0", "--retain", "1/3", *model],
        ["analyze", str(scene), "--out", "{out}/a", *model],
    ]
    for command in commands:
        result = CliRunner().invoke(app, [part.format(out=full_disk) for part in command])
        said = result.stderr.replace("\n", "")
        assert result.exit_code == 1, (command, result.output)
        assert "No space left on device" in said
        assert f"--out: cannot write {full_disk}/" in said
        left = [path for path in full_disk.rglob("*") if path.is_file()]
        assert all(path.suffix in (".partial", ".jsonl", ".md", ".json", ".csv", ".png") for path in left), left
        for path in left:
            check_whole(path)
            path.unlink()


def check_whole(path: Path) -> None:
    """A file that is there is a whole one; a partial one has whole lines."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix in (".jsonl", ".partial"):
        text = path.read_text()
        assert not text or text.endswith("\n")
        for line in text.splitlines():
            json.loads(line)
    elif path.suffix in (".md", ".csv"):
        assert path.read_text().endswith("\n")


@pytest.mark.parametrize("arguments", [["scene", "--json"], ["scene"], ["doctor"], ["doctor", "--json"]])
def test_a_full_stdout_is_told_once(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = run_command(arguments, cwd=tmp_path, stdout=full)
    assert result.returncode == 1
    assert "stdout: cannot be written to: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    main = "from vitcop_llava.tools.cli import main; main()"
    program = f"{sys.executable} -c '{main}' scene --json | head -c 0"
    result = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr == ""


def run_command(arguments: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from vitcop_llava.tools.cli import main; main()", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


WITHOUT_TORCH = """
import sys
from vitcop_llava.tools.cli import app
try:
    app(sys.argv[1:])
except SystemExit as error:
    assert error.code == 2, error.code
slow = {"torch", "transformers", "matplotlib", "av", "numpy"} & set(sys.modules)
assert not slow, slow
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "none.png", "What?"],
        ["ask", "none.mp4", "What?"],
        ["ask", "there.png", "none.png", "What?"],
        ["ask", ".", "What?"],
        ["ask", "https://example.com/a.png", "What?"],
        ["ask", "--batch", "none.jsonl"],
        ["ask", "--batch", "there.png", "--out", "none/out.jsonl"],
        ["show", "none.png"],
        ["show", "there.png", "--out", "none/out.png"],
        ["compare", "--questions", "none.jsonl", "--out", "new"],
        ["compare", "--preset", "none"],
        ["analyze", "none.png"],
        ["analyze", "--questions", "none.jsonl"],
        ["scene", "--out", "none/out.png"],
        ["bench", "--out", "none/out.json"],
        ["ask", "there.png", "What?", "--retain", "0"],
    ],
    ids=" ".join,
)
def test_a_missing_file_is_told_before_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("Error: ")


def test_help_has_no_ragged_lines() -> None:
    result = CliRunner().invoke(app, ["ask", "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
    lines = [line.strip(" │") for line in result.output.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("Print the answer"))
    paragraph = lines[start : start + lines[start:].index("")]
    assert all(len(line) > 80 for line in paragraph[:-1]), paragraph
    assert result.output.count("<bool>") == 1  # --help, which is typer's


def test_an_animated_picture_is_noted(checkpoint: Path, tmp_path: Path) -> None:
    frames = [Image.linear_gradient("L").rotate(angle).resize((96, 96)) for angle in (0, 90)]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    asked = ["ask", str(path), "What color is the circle?", "--model", str(checkpoint), "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert any("first frame" in note for note in json.loads(result.stdout)["notes"])
