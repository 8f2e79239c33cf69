"""``vitcop show`` on a model with random weights: the file that it writes, and when it refuses to."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.pictures.survivors import GAP, LEGEND, PANEL, TITLE

HEIGHT = TITLE + PANEL + LEGEND + GAP // 2


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("image.jpg")
    return Path("image.jpg")


def show(checkpoint: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["show", *map(str, arguments), "--model", str(checkpoint), "--device", "cpu"])


def test_show_draws_the_image_and_three_stages(checkpoint: Path, image: Path) -> None:
    result = show(checkpoint, image, "--retain", "20%")
    assert result.exit_code == 0, result.output
    assert "image-vitcop.png" in result.stdout
    assert "after Stage II, before layer 1" in result.stdout
    with Image.open("image-vitcop.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (GAP + 4 * (PANEL + GAP), HEIGHT))


def test_show_json_says_which_patches_are_left(checkpoint: Path, image: Path) -> None:
    result = show(checkpoint, image, "--retain", "20%", "--out", "out.png", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    content = json.loads(result.stdout)
    assert content["picture"] == "out.png"
    assert [stage["tokens"] for stage in content["stages"]] == [54, 32, 6]
    first, second, third = (set(stage["patches"]) for stage in content["stages"])
    assert third < second < first
    assert set(content["stages"][1]["merged"]) < second
    assert {number for number, cluster in enumerate(content["clusters"]) if cluster >= 0} == first
    assert (content["question"], content["answer"]) == (None, None)


def test_show_writes_the_answer_under_the_picture(checkpoint: Path, image: Path) -> None:
    result = show(checkpoint, image, "What color is the circle?", "--out", "out.png", "--json")
    assert isinstance(json.loads(result.stdout)["answer"], str)
    with Image.open("out.png") as picture:
        assert picture.height == HEIGHT + LEGEND


def test_show_overwrites_with_force_alone(checkpoint: Path, image: Path) -> None:
    Path("out.png").write_bytes(b"precious")
    result = show(checkpoint, image, "--out", "out.png")
    assert result.exit_code == 2
    assert "must be a new file, got out.png; --force overwrites it" in result.stderr
    assert Path("out.png").read_bytes() == b"precious"
    assert show(checkpoint, image, "--out", "out.png", "--force").exit_code == 0
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "out.jpg"], "--out must be the name of a PNG file"),
        (["--out", "none/out.png"], "--out must be in an existing folder"),
        (["--out", "folder.png", "--force"], "got the folder folder.png"),
        (["--retain", "all"], "--retain must leave something out"),
        (["--retain", "1%"], "--retain 1.0%: it must be from "),
    ],
)
def test_show_names_a_mistake(checkpoint: Path, image: Path, arguments: list[str], said: str) -> None:
    Path("folder.png").mkdir()
    result = show(checkpoint, image, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not Path("image-vitcop.png").exists()


def test_show_never_overwrites_its_input(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("image.png")
    result = show(checkpoint, "image.png", "--out", "./image.png", "--force")
    assert result.exit_code == 2
    assert "--out must not be the input" in result.stderr


def test_show_takes_output_as_another_name_of_out(checkpoint: Path, image: Path) -> None:
    assert show(checkpoint, image, "-o", "out.png").exit_code == 0
    assert Path("out.png").exists()
