"""Tasks for lmms-eval on local files: ``python -m vitcop_llava.tools.lmms.prepare KIND --out FOLDER``.

Then ``lmms-eval --include_path FOLDER --tasks ...`` finds them. Without a kind, the command prints the folder of tasks
that need no local files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitcop_core.files import read_bytes, write_text, write_whole
from vitcop_llava.tools.demo.questions import KINDS, NUMBERS, questions_about
from vitcop_llava.tools.demo.scenes import CELLS, COLORS, MARKS, SHAPES, render, sample_scene
from vitcop_llava.tools.media.video_support import need_support

TASKS = Path(__file__).parent / "tasks"
"""The folder of tasks that need no local files, and of what the others include."""

VIDEOS = {"tgif": "tgif_qa", "msvd": "msvd_qa", "msrvtt": "msrvtt_qa"}
"""Sets of questions about videos, and their tasks."""

_CHOICES = dict(zip(KINDS, ([*COLORS], [*SHAPES], [*CELLS], [*NUMBERS], [*MARKS, "none"]), strict=True))
_SUFFIXES = ("", ".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif")
_MOST_BYTES = 2**28


def prepare_scenes(folder: Path, scenes: int = 12) -> list[str]:
    """Write ``vitcop_scenes`` and ``vitcop_scenes_choice``: held-out scenes of the demo model, six questions each.

    Args:
        folder: where to; it is made if it is missing.
        scenes: how many.

    Returns:
        The names of the tasks.

    Raises:
        OSError: something cannot be written.
    """
    rows = list[dict[str, Any]]()
    pictures = folder / "scenes"
    pictures.mkdir(parents=True, exist_ok=True)
    for seed in range(scenes):
        scene, path = sample_scene(seed), pictures / f"{seed}.png"
        with write_whole(path) as stream:
            render(scene).save(stream, format="PNG")
        for question in questions_about(scene)[:6]:
            row = {"image": str(path.resolve()), "question": question.text, "answer": question.answer}
            rows.append({"id": len(rows), "kind": question.kind, **row, "choices": _CHOICES[question.kind]})
    _write(folder, "vitcop_scenes", "template_scenes", rows)
    # A place may begin another's name, and then is the likelier one: top, and top right.
    _write(folder, "vitcop_scenes_choice", "template_choices", [row for row in rows if row["kind"] != "where"])
    return ["vitcop_scenes", "vitcop_scenes_choice"]


def prepare_clips(folder: Path, clips: int = 6) -> list[str]:
    """Write ``vitcop_clips``: held-out clips of the demo model for videos, four questions each. Needs vitcop-video.

    Args:
        folder: where to; it is made if it is missing.
        clips: how many.

    Returns:
        The names of the tasks.

    Raises:
        ValueError: vitcop-video is not installed.
        OSError: something cannot be written.
    """
    rows = list[dict[str, Any]]()
    videos, support = folder / "clips", need_support()
    videos.mkdir(parents=True, exist_ok=True)
    for seed in range(clips):
        path = videos / f"{seed}.mp4"
        for question in support.write_demo(seed, path)[:4]:
            row = {"video": str(path.resolve()), "question": question.text, "answer": question.answer}
            rows.append({"id": len(rows), **row})
    # The demo model knows its questions word for word.
    plain = {"lmms_eval_specific_kwargs": {"default": {"post_prompt": ""}}}
    _write(folder, "vitcop_clips", "template_videos", rows, plain)
    return ["vitcop_clips"]


def prepare_videos(kind: str, source: Path, folder: Path) -> list[str]:
    """Write the task of a set of questions about videos, from its files in the form that Video-ChatGPT and Video-LLaVA
    evaluate.

    Args:
        kind: one of `VIDEOS`.
        source: a folder with ``test_q.json``, ``test_a.json`` and ``videos``.
        folder: where to; it is made if it is missing.

    Returns:
        The names of the tasks.

    Raises:
        ValueError: a question has no answer or no video, or a file is of another form.
        OSError: a file is missing, or cannot be written.
    """
    answers = {str(item["question_id"]): str(item["answer"]) for item in _items(source / "test_a.json", "answer")}
    rows = []
    for item in _items(source / "test_q.json", "question", "video_name"):
        key, name = str(item["question_id"]), str(item["video_name"])
        if key not in answers:
            raise ValueError(f"test_a.json must have an answer to every question, got none to {key!r:.80}")
        path = next((path for end in _SUFFIXES if (path := source / "videos" / f"{name}{end}").is_file()), None)
        if path is None:
            raise ValueError(f"videos must have a file for every question, got none named {name!r:.80}")
        rows.append({"id": key, "video": str(path.resolve()), "question": item["question"], "answer": answers[key]})
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, VIDEOS[kind], "template_videos", rows)
    return [VIDEOS[kind]]


def _items(path: Path, *keys: str) -> list[Mapping[str, Any]]:
    try:
        items = json.loads(read_bytes(path, _MOST_BYTES))
        if not isinstance(items, list) or not all({"question_id", *keys} <= {*item} for item in items):
            raise ValueError(f"{', '.join(keys)} and question_id must be in every item, got others")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return items


def _write(
    folder: Path, task: str, template: str, rows: Iterable[Mapping[str, Any]], more: Mapping[str, Any] | None = None
) -> None:
    """Write the data of a task, and the task itself, in JSON, which is YAML."""
    write_text(folder / f"{task}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    files = {"dataset_kwargs": {"data_files": {"test": f"{task}.jsonl"}}}
    config = {"include": str(TASKS / template), "task": task, **files, **(more or {})}
    write_text(folder / f"{task}.yaml", f"{json.dumps(config, indent=1)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="vitcop_llava.tools.lmms.prepare", description=__doc__)
    parser.add_argument("kind", nargs="?", choices=["scenes", "clips", *VIDEOS])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the tasks go")
    parser.add_argument("--count", type=int, help="how many scenes or clips; 12 and 6 if it is not given")
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="test_q.json, test_a.json and videos/")
    given = parser.parse_args(arguments)
    if given.kind is None:
        print(TASKS)
        return 0
    if given.out is None or (given.kind in VIDEOS) != (given.source is not None):
        parser.error("give --out, and --source for tgif, msvd and msrvtt alone")
    try:
        if given.kind in VIDEOS:
            names = prepare_videos(given.kind, given.source, given.out)
        else:
            made = {"scenes": prepare_scenes, "clips": prepare_clips}[given.kind]
            names = made(given.out, *(() if given.count is None else (given.count,)))
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"--include_path {given.out} --tasks {','.join(names)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
