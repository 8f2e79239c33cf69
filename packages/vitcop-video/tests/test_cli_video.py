"""``vitcop ask``, ``show``, ``scene`` and ``doctor`` on videos, with a model that is not trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.cli.errors import UserError
from vitcop_llava.tools.cli.media import changed_option, parse_sampling
from vitcop_llava.tools.media.video_support import Sampling
from vitcop_llava.tools.model.loading import load
from vitcop_llava.tools.model.processors import ModelError
from vitcop_llava.tools.pictures.contact_sheet import FRAME
from vitcop_video import backend_status, read_video
from vitcop_video.clips import ClipSettings as Settings
from vitcop_video.clips import write_clip
from vitcop_video.demo.build import demo_model, demo_processor, save_demo
from vitcop_video.support import read_clip

Clips = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_demo(demo_model(), demo_processor(), folder)
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def ask(checkpoint: Path, *arguments: object) -> Result:
    return run("ask", *arguments, "--model", checkpoint, "--device", "cpu", "--max-new-tokens", 3)


def content(result: Result) -> dict[str, Any]:
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_ask_reads_eight_frames_and_prunes_them(checkpoint: Path, clip: Clips) -> None:
    told = content(ask(checkpoint, clip("b-frames.mp4"), "What happens?", "--json"))
    assert told["visual_tokens"] == 8 * 36
    assert told["pruned"]["average_tokens"] <= 32
    assert told["model"]["visual_tokens_per_frame"] == 36
    (seen,) = told["clips"]
    assert (seen["frames"], seen["reader"], seen["note"]) == (60, "pyav", None)
    assert seen["indices"] == read_video(clip("b-frames.mp4"), frames=8).indices.tolist()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--frames", 3], [0, 20, 40]),
        (["--fps", 2], [0, 15, 30, 45]),
        (["--indices", "5, 5,0"], [5, 5, 0]),
        (["--key-frames"], [0, 12, 24, 36, 48]),
        (["--frames", 2, "--start", 1.0, "--end", 1.2], [30, 33]),
        (["--frames", 3, "--reader", "decord"], [0, 20, 40]),
    ],
)
def test_ask_takes_the_frames_that_options_choose(
    checkpoint: Path, clip: Clips, options: list[object], wanted: list[int]
) -> None:
    told = content(ask(checkpoint, clip("b-frames.mp4"), "What happens?", "--retain", "50%", "--json", *options))
    assert told["clips"][0]["indices"] == wanted
    assert told["visual_tokens"] == 36 * len(wanted)


def test_ask_says_which_frames_it_looked_at(checkpoint: Path, clip: Clips) -> None:
    result = ask(checkpoint, clip("one.mp4"), "What happens?", "--frames", 1, "--retain", "30%")
    assert result.exit_code == 0, result.output
    assert "1 of 1 frames, at 0.00 s (pyav)" in " ".join(result.stdout.split())


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_ask_takes_a_clip_of_six_frames(checkpoint: Path, ending: str) -> None:
    path = write_clip(Path(f"six.{ending}"), Settings(frames=6))
    assert content(ask(checkpoint, path, "What happens?", "--json"))["clips"][0]["indices"] == [0, 1, 2, 3, 4, 5]
    result = ask(checkpoint, path, "What happens?", "--frames", 8)
    assert result.exit_code == 2
    assert "frames must be at most 6" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("given", "wanted"), [(10.0, 10.0), (0, None), (0.5, 0.5)])
def test_a_limit_of_time_is_passed_on(given: float, wanted: float | None) -> None:
    sampling = parse_sampling(None, None, None, False, None, None, "auto", given)
    assert sampling.time_limit == wanted
    assert changed_option(sampling) == (None if given == 10 else "--time-limit")


@pytest.mark.parametrize("given", [-1, float("nan"), float("inf"), 1e7])
def test_a_limit_of_time_that_is_none_is_refused(given: float) -> None:
    with pytest.raises(UserError, match="--time-limit must be from 0 to 1000000 seconds"):
        parse_sampling(None, None, None, False, None, None, "auto", given)


def test_time_that_is_over_names_the_file(clip: Clips) -> None:
    with pytest.raises(ValueError, match=r"got .*b-frames\.mp4, which takes longer than"):
        read_clip(clip("b-frames.mp4"), Sampling(time_limit=1e-4))


def test_ask_takes_clips_and_pictures_together(checkpoint: Path, clip: Clips) -> None:
    Image.linear_gradient("L").save("picture.png")
    paths = [clip("b-frames.mp4"), "picture.png", clip("one.mp4")]
    result = ask(checkpoint, *paths, "What happens?", "--retain", "50%", "--indices", "0", "--json")
    told = content(result)
    assert [Path(each["path"]).name for each in told["clips"]] == ["b-frames.mp4", "one.mp4"]
    assert told["visual_tokens"] > 2 * 36


def test_ask_takes_clips_of_several_lengths(checkpoint: Path, clip: Clips) -> None:
    paths = clip("b-frames.mp4"), clip("long-gop.mp4")
    told = content(ask(checkpoint, *paths, "What happens?", "--fps", 1, "--retain", "50%", "--json"))
    assert [len(each["indices"]) for each in told["clips"]] == [2, 4]
    assert told["visual_tokens"] == 6 * 36


def test_batches_hold_videos_and_report_bad_ones_by_line(checkpoint: Path, clip: Clips) -> None:
    Path("broken.mp4").write_bytes(clip("b-frames.mp4").read_bytes()[:1000])
    lines = [{"image": str(clip("b-frames.mp4")), "question": "What happens?"}]
    lines += [{"image": "broken.mp4", "question": "What happens?"}, {"image": "gone.mp4", "question": "What happens?"}]
    Path("batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = ask(checkpoint, "--batch", "batch.jsonl", "--frames", 2, "--retain", "50%")
    assert result.exit_code == 1
    good, broken, gone = map(json.loads, result.stdout.splitlines())
    assert good["visual_tokens"] == 72
    assert "broken.mp4" in broken["error"]
    assert "video must be an existing file, got gone.mp4" in gone["error"]
    assert "line 2" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.mp4", "What?"], "video must be an existing file, got gone.mp4"),
        (["folder.mp4", "What?"], "folder.mp4"),
        (["empty.mp4", "What?"], "is empty"),
        (["text.mp4", "What?"], "must be a video that can be read"),
        (["https://example.org/clip.mp4", "What?"], "video must be a file on this machine, got the address"),
        (["clip.mp4", "What?", "--frames", "100"], "frames must be at most 60"),
        (["clip.mp4", "What?", "--frames", "0"], "--frames"),
        (["clip.mp4", "What?", "--fps", "-1"], "fps"),
        (["clip.mp4", "What?", "--start", "9"], "start must be in [0, 2.000)"),
        (["clip.mp4", "What?", "--fps", "1", "--frames", "2"], "must be the only one of"),
        (["clip.mp4", "What?", "--indices", "1,two"], "must be frame numbers with commas between them"),
        (["clip.mp4", "What?", "--indices", "60"], "indices[0]"),
        (["clip.mp4", "What?", "--indices", "1", "--end", "1"], "must not be given with"),
        (["clip.mp4", "What?", "--reader", "vlc"], "backend must be one of"),
        (["picture.png", "What?", "--fps", "1"], "--fps must be used with videos"),
        (["clip.mp4", "What is <video>?"], "must not hold the placeholder"),
        (["clip.mp4"], "the question"),
    ],
)
def test_ask_names_what_is_wrong(checkpoint: Path, clip: Clips, arguments: list[str], said: str) -> None:
    Path("clip.mp4").write_bytes(clip("b-frames.mp4").read_bytes())
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("words")
    Path("folder.mp4").mkdir()
    Image.new("RGB", (50, 50)).save("picture.png")
    result = ask(checkpoint, *arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_model_of_images_refuses_clips(clip: Clips) -> None:
    from vitcop_llava.tools.model.loading import DEMO_FOLDER

    result = ask(DEMO_FOLDER, clip("one.mp4"), "What happens?", "--frames", 1)
    assert result.exit_code == 2
    assert "must read clips" in result.stderr


def test_show_draws_a_contact_sheet(checkpoint: Path, clip: Clips) -> None:
    arguments = ("show", clip("b-frames.mp4"), "What happens?", "--model", checkpoint, "--device", "cpu")
    told = content(run(*arguments, "--retain", "20%", "--frames", 10, "--out", "sheet.png", "--json"))
    assert [stage["name"] for stage in told["stages"]] == ["Stage I", "Stage II", "Stage III"]
    assert told["visual_tokens"] == 360
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 8 * FRAME
        assert sheet.height > 2 * 4 * FRAME  # ten frames take two bands
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000
    assert run(*arguments, "--out", "sheet.png").exit_code == 2


def test_show_names_the_sheet_after_the_clip(checkpoint: Path, clip: Clips) -> None:
    result = run("show", clip("b-frames.mp4"), "--frames", 4, "--model", checkpoint, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert Path("b-frames-vitcop.png").is_file()


def test_scene_draws_a_clip_that_can_be_read_back() -> None:
    told = content(run("scene", "--clip", "--seed", 8, "--json"))
    assert told["video"] == "scene-8.mp4"
    assert told["questions"]
    assert read_video("scene-8.mp4").info.frames == 8
    assert run("scene", "--clip", "--seed", 8).exit_code == 2
    assert run("scene", "--clip", "--seed", 8, "--out", "clip.png").exit_code == 2


def test_doctor_says_which_readers_there_are() -> None:
    readers = content(run("doctor", "--json"))["video"]
    assert list(readers) == list(backend_status())
    assert readers["pyav"]["is_default"]
    assert all(reader["detail"] for reader in readers.values())


def test_a_processor_for_other_frames_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="gives images of"):
        load(str(tmp_path), device="cpu")


def questions(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def compare(checkpoint: Path, *arguments: object) -> Result:
    short = ("--retain", "1/3", "--timing", 0, "--max-new-tokens", 3)
    return run("compare", *arguments, "--model", checkpoint, "--device", "cpu", *short)


def test_compare_asks_about_clips_and_counts_what_ask_does(checkpoint: Path, clip: Clips, tmp_path: Path) -> None:
    name, text = str(clip("b-frames.mp4")), "What happens?"
    asked = questions(tmp_path / "questions.jsonl", {"image": name, "question": text, "answer": "two"})
    result = compare(checkpoint, "--questions", asked, "--frames", 5, "--out", tmp_path / "out", "--json")
    compared = content(result)["comparison"]
    assert (compared["questions"], compared["images"], compared["clips"]) == (1, 1, 1)
    rows = {row["label"]: row for row in compared["variants"] if row["problem"] is None}
    assert {"unpruned", "ViTCoP", "VisionZip", "SparseVLM", "PyramidDrop", "FastV"} <= set(rows)
    assert rows["unpruned"]["tokens"] == 5 * 36
    for label in ("ViTCoP", "VisionZip", "SparseVLM", "PyramidDrop", "FastV"):
        told = content(
            ask(checkpoint, name, text, "--frames", 5, "--retain", "1/3", "--method", label.lower(), "--json")
        )
        assert rows[label]["kv_bytes"] == told["pruned"]["cache_bytes"]
        assert rows[label]["macs"] == told["pruned"]["prefill_macs"]
        assert rows[label]["tokens"] == told["pruned"]["average_tokens"]
        (line,) = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()[1:]]
        assert line["said"][f"{label}, 1/3"] == told["pruned"]["answer"]
    assert "1 clips" in (tmp_path / "out" / "report.md").read_text()


def test_compare_names_the_nearest_budget_for_the_clips(checkpoint: Path, clip: Clips, tmp_path: Path) -> None:
    asked = questions(
        tmp_path / "q.jsonl", {"image": str(clip("b-frames.mp4")), "question": "What happens?", "answer": "two"}
    )
    out = tmp_path / "out"
    result = compare(checkpoint, "--questions", asked, "--method", "fastv", "--retain", "1/9", "--out", out, "--json")
    rows = {row["retain"]: row for row in content(result)["comparison"]["variants"]}
    # One of eight layers on all 288 tokens is 36 of them on average, and at least one is left in the other layers.
    assert (rows["1/3"]["nearest_tokens"], rows["1/9"]["nearest_tokens"]) == (None, 37)


def test_compare_mixes_pictures_and_clips_and_goes_on_after_bad_ones(
    checkpoint: Path, clip: Clips, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save("picture.png")
    Path("bad.mp4").write_bytes(b"")
    asked = questions(
        tmp_path / "questions.jsonl",
        {"image": "picture.png", "question": "What happens?", "answer": "two"},
        {"image": "bad.mp4", "question": "What happens?", "answer": "two"},
        {"images": ["picture.png", str(clip("b-frames.mp4"))], "question": "What happens?", "answer": "two"},
        {"image": str(clip("variable.mp4")), "question": "What happens?", "answer": "two"},
    )
    methods = ("--method", "vitcop,fastv")
    result = compare(checkpoint, "--questions", asked, *methods, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "line 2: " in result.stderr
    compared = json.loads((tmp_path / "out" / "result.json").read_text())["comparison"]
    assert (compared["questions"], compared["clips"], len(compared["faults"])) == (3, 2, 1)


def test_compare_takes_options_for_videos_with_videos_alone(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save("picture.png")
    asked = questions(tmp_path / "q.jsonl", {"image": "picture.png", "question": "What?", "answer": "two"})
    result = compare(checkpoint, "--questions", asked, "--fps", 2, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: --fps must be used with videos, got questions about images alone\n"


@pytest.mark.parametrize(("limit", "said"), [("-1", "--time-limit must be from 0"), ("nan", "--time-limit must be")])
def test_a_time_limit_out_of_range_is_a_mistake(limit: str, said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ask", "clip.mp4", "What?", "--time-limit", limit])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
