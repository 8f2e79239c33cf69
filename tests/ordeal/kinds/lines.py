"""JSON lines: files of questions, and journals of runs that were cut off, as the commands that read them see them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image

from ordeal.console import Console, Ended, with_one_model
from ordeal.models import checkpoint
from ordeal.mutate import as_json, mutated, mutated_json
from ordeal.trials import RefusedError, Trial, demand
from vitcop_core.journal import Journal, partial_path

Words = Callable[[Path, Path, list[str]], list[str]]

ANSWERING: dict[str, Words] = {
    "ask": lambda questions, out, use: ["ask", "--batch", str(questions), "--out", str(out), *use],
    "batch": lambda questions, out, use: ["batch", str(questions), "--out", str(out), "--batch-size", "2", *use],
}
"""Commands that answer every line, by the file of questions, that of the results, and the model."""

KINDS = (*ANSWERING, *ANSWERING, *(f"{name} --resume" for name in ANSWERING), "compare", "compare --resume", "analyze")


def prepare(folder: Path) -> Trial:
    """Loads a model once; a trial gives a command a file of lines, most of them damaged."""
    torch.set_num_threads(1)
    model = checkpoint(folder / "model")
    with_one_model(model)
    for number in range(2):
        Image.linear_gradient("L").rotate(90 * number).resize((60, 60)).save(folder / f"{number}.png")
    (folder / "text.png").write_text("no picture")
    console, use = Console(), ["--model", str(model), "--device", "cpu", "--max-new-tokens", "1"]
    questions, out = Path("run.jsonl"), Path("answers.jsonl")
    journals = {name: _journal(console, words(questions, out, use), out) for name, words in ANSWERING.items()}
    journals["compare"] = _journal(console, _compare(questions, Path("out"), use), Path("out/answers.jsonl"))

    def trial(random: Random) -> None:
        place = folder / "case"
        place.mkdir()
        try:
            lines, what = damaged_lines(random), random.choice(KINDS)
            name, _, resume = what.partition(" ")
            out = place / ("out" if name in ("compare", "analyze") else "answers.jsonl")
            if resume:
                journal = out / "answers.jsonl" if name == "compare" else out
                journal.parent.mkdir(exist_ok=True)
                lines = _leave_journal(journal, journals[name], random)
            questions = place / "lines.jsonl"
            questions.write_bytes(lines)
            words = {"compare": _compare, "analyze": _analyze, **ANSWERING}[name](questions, out, use)
            ended = console.run([*words, *filter(None, [resume])])
            check_folder(place)
            if name in ANSWERING:
                _check_results(ended, out, lines, resume=bool(resume))
            if ended.code:
                raise RefusedError
        finally:
            shutil.rmtree(place)

    return trial


def good_line(random: Random) -> dict[str, Any]:
    image = random.choice(("0.png", "1.png", "0.png", "1.png", "text.png", "none.png", "."))
    line: dict[str, Any] = {"image": image, "question": random.choice(("What color is the circle?", "Where?"))}
    if random.random() < 0.2:
        line = {"images": ["0.png", "1.png"], "question": "What changed?"}
    if random.random() < 0.4:
        line["id"] = random.choice(("a", 7, "b" * 30))
    if random.random() < 0.4:
        line["answer"] = "red"
    return line


def damaged_lines(random: Random) -> bytes:
    lines = []
    for _ in range(random.choice((1, 2, 2, 4))):
        line: Any = good_line(random)
        if random.random() < 0.6:
            line = mutated_json(line, random)
        lines.append(as_json(line, random))
    data = random.choice((b"\n", b"\n", b"\r\n", b"\n\n", b" \n")).join(lines)
    return mutated(data, random) if random.random() < 0.15 else data


def _journal(console: Console, words: list[str], out: Path) -> tuple[bytes, bytes]:
    """The questions and the journal of a run: what is left of it if it is killed at its end."""
    lines = [
        json.dumps({"image": f"{number % 2}.png", "question": "Where?", "id": number, "answer": "here"})
        for number in range(3)
    ]
    Path("run.jsonl").write_text("\n".join(lines))
    kept: list[bytes] = []

    def keep(journal: Journal, *_: Any) -> None:
        kept.append(journal.partial.read_bytes())

    finish, Journal.finish = Journal.finish, keep  # type: ignore[assignment, method-assign]
    try:
        console.run(words)
    finally:
        Journal.finish = finish  # type: ignore[method-assign]
    partial_path(out).unlink()
    return "\n".join(lines).encode(), kept[0]


def _leave_journal(out: Path, run: tuple[bytes, bytes], random: Random) -> bytes:
    """Puts a changed journal beside a file of results; returns the questions of its run."""
    questions, journal = run
    rows = journal.split(b"\n")
    for _ in range(random.choice((1, 1, 2))):
        number = random.randrange(len(rows))
        try:
            rows[number] = as_json(mutated_json(json.loads(rows[number]), random), random)
        except ValueError:
            rows[number] = random.randbytes(20)
    partial_path(out).write_bytes(b"\n".join(rows[: random.randrange(1, len(rows) + 1)]))
    return questions


def _check_results(ended: Ended, out: Path, lines: bytes, *, resume: bool) -> None:
    """Makes a fault of results that are not one a line."""
    demand(out.exists() or ended.code == 2, f"ended with {ended.code} without results: {ended.said[-300:]!r}")
    if not out.exists():
        return
    demand(not partial_path(out).exists(), "a journal is left beside the results")
    results = [json.loads(line) for line in out.read_bytes().splitlines()]
    asked = [number for number, line in enumerate(lines.split(b"\n"), 1) if line.strip()]
    demand([each["line"] for each in results] == asked, f"lines {[each['line'] for each in results]} of {asked}")
    for each in results:
        demand(("error" in each) != ("answer" in each), f"a result without error and answer, or with both: {each}")
    failed = any("error" in each for each in results)
    demand(ended.code == int(failed) or resume, f"ended with {ended.code}; failed: {failed}")


def _compare(questions: Path, out: Path, use: list[str]) -> list[str]:
    more = ("--limit", "3", "--retain", "1/3", "--method", "vitcop", "--timing", "0", "--batch-size", "1")
    return ["compare", "--questions", str(questions), "--out", str(out), *more, *use]


def _analyze(questions: Path, out: Path, use: list[str]) -> list[str]:
    return ["analyze", "--questions", str(questions), "--out", str(out), "--top-k", "50", *use]


def check_folder(folder: Path) -> None:
    """Makes a fault of a file that is not whole, under a final name."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name == "lines.jsonl" or path.suffix == ".partial":
            continue
        demand(not path.name.startswith(".vitcop-"), f"{path.name} is left behind")
        content = path.read_bytes()
        if content.startswith(b"\x89PNG"):
            demand(content.endswith(b"IEND\xaeB`\x82"), f"{path.name} is half a picture")
        elif path.suffix in {".png", ".json", ".jsonl"} and not _is_json(content):  # names are the user's
            demand(not content or content.endswith(b"\n"), f"{path.name} ends in half a line")
            demand(all(_is_json(line) for line in content.splitlines()), f"{path.name} has half a line")


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
