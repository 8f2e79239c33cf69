"""Tasks of our own: found by lmms-eval, and made from files in the form that others evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks import TaskManager

from vitcop_llava.tools.lmms.prepare import TASKS, VIDEOS, main, prepare_videos
from vitcop_llava.tools.lmms.tasks.functions import mmbench_accuracy
from vitcop_llava.tools.media.video_support import need_support


def source(folder: Path, suffix: str = ".mp4") -> Path:
    """Two questions about a clip, in the form of Video-ChatGPT's."""
    (folder / "videos").mkdir()
    need_support().write_demo(3, folder / "videos" / f"clip{suffix}")
    questions = [
        {"video_name": "clip", "question": f"What happens {when}?", "question_id": when} for when in ("1", "2")
    ]
    (folder / "test_q.json").write_text(json.dumps(questions))
    answers = [{"answer": f"answer {key}", "question_id": key, "type": 0} for key in ("2", "1")]
    (folder / "test_a.json").write_text(json.dumps(answers))
    return folder


@pytest.mark.parametrize("kind", VIDEOS)
def test_questions_about_videos_become_a_task(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    assert main([kind, "--source", str(source(tmp_path)), "--out", str(made)]) == 0
    assert VIDEOS[kind] in capsys.readouterr().out
    manager = TaskManager(include_path=str(made), include_defaults=False)
    task = manager.load_task_or_group(VIDEOS[kind])[VIDEOS[kind]]
    assert isinstance(task, ConfigurableTask)
    docs = [*task.test_docs()]
    assert [task.doc_to_target(doc) for doc in docs] == ["answer 1", "answer 2"]
    assert task.doc_to_text(docs[0]).startswith("What happens 1? Answer the question using a single word")
    (visual,) = task.doc_to_visual(docs[0])
    assert (visual["type"], Path(visual["path"]).name) == ("video", "clip.mp4")
    found = task.process_results(docs[0], ["Answer 1."])
    assert found["exact_match"] == 1


def test_questions_without_an_answer_or_a_video_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source(tmp_path)
    (folder / "videos" / "clip.mp4").rename(folder / "videos" / "other.mp4")
    with pytest.raises(ValueError, match="videos must have a file for every question, got none named 'clip'"):
        prepare_videos("tgif", folder, tmp_path / "made")
    (folder / "test_a.json").write_text("[]")
    assert main(["msvd", "--source", str(folder), "--out", str(tmp_path / "made")]) == 2
    assert "test_a.json must have an answer to every question, got none to '1'" in capsys.readouterr().err
    (folder / "test_q.json").write_text('[{"question": "Who?"}]')
    with pytest.raises(ValueError, match="question, video_name and question_id must be in every item"):
        prepare_videos("tgif", folder, tmp_path / "made")


def test_lmms_eval_finds_mmbench_cn_without_a_judge(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    folder = capsys.readouterr().out.strip()
    assert folder == str(TASKS)
    manager = TaskManager(include_path=folder, include_defaults=False)
    assert manager.all_subtasks == ["mmbench_cn_dev_static"]
    config = manager._get_config("mmbench_cn_dev_static")
    doc = row(7, "", "B") | {"image": None}
    text = config["doc_to_text"](doc, config["lmms_eval_specific_kwargs"]["default"])
    assert text.startswith("There are several options:") or "A. one" in text
    assert text.endswith("请直接使用所提供的选项字母作为答案回答。")
    (metric,) = config["metric_list"]
    results = [config["process_results"](doc, ["B"])["gpt_eval_score"]]
    assert metric["aggregation"](results) == 100


def row(index: int, prediction: str, answer: str) -> dict[str, Any]:
    choices = {"A": "one", "B": "two", "C": "three", "D": "nan"}
    places = {"category": "a", "L2-category": "b", "source": "s", "split": "dev", "hint": "nan"}
    return {"index": index, "question": "How many?", "answer": answer, "prediction": prediction} | choices | places


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([row(1, "A", "A"), row(2, "B.", "A")], 50),
        ([row(1, "A", "A"), row(1_000_001, "C", "B")], 0),  # one question in two orders of its choices
        ([row(1, "(B)", "B"), row(1_000_001, "答案是C", "C")], 100),
    ],
)
def test_mmbench_counts_what_is_right_in_every_order(rows: list[dict[str, Any]], wanted: float) -> None:
    assert mmbench_accuracy(rows) == wanted
