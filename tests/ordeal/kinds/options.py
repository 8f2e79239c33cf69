"""Options of the command line: every command with values, files and flags that do not fit."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from typer.main import get_command

from ordeal.console import Console, with_one_model
from ordeal.kinds.lines import check_folder
from ordeal.models import checkpoint
from ordeal.mutate import mutated_text
from ordeal.trials import RefusedError, Trial
from vitcop_llava.tools.cli import app

NUMBERS = (
    *("0", "1", "2", "3", "8", "36", "64", "-1", "-0", "1.0", "0.5", "1e3", "1e400", "nan", "inf", "-inf", "10000000"),
    *("9" * 400, "1_0", " 1", "1 ", "１", "0x10", "", "x", "None", "1/3", "1/0", "0/1", "11.1%", "100%", "101%", "all"),
    *("1,6", "(1, 6)", "1,,6", "0,5,10", "-1,2", "0.0000001%", "1/3,1/9", "64x64", "0x0", "9999999x1", "\0", "\u202e"),
)
PLACES = (
    "case.png",
    "case.json",
    "case.mp4",
    "none/case.png",
    "../x\0y",
    "",
    ".",
    "0.png",
    "new",
    "/dev/null",
    "a" * 300,
)
FILES = ("0.png", "text.jpg", "none.png", ".", "/dev/zero", "", "\0", "https://example.org/a.png", "0.mp4", "a" * 5000)
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--retain", "--max-new-tokens", "--frames", "--fps", "--indices", "--start", "--end"), NUMBERS),
    **dict.fromkeys(("--time-limit", "--seed", "--limit", "--batch-size", "--timing", "--scenes", "--top-k"), NUMBERS),
    **dict.fromkeys(("--repeats", "--new-tokens", "--batch", "--text-tokens", "--image-size"), NUMBERS),
    **dict.fromkeys(("--json", "--debug", "--force", "--resume", "--compare", "--brief", "--capture"), ()),
    **dict.fromkeys(("--key-frames", "--clip", "--host", "--help", "--version"), ()),
    "--device": ("cpu", "auto", "cuda", "cuda:99", "meta", "gpu", "", "cpu:5", "\0"),
    "--dtype": ("auto", "float32", "bfloat16", "float64", "int8", ""),
    "--reader": ("auto", "pyav", "none", ""),
    "--attention": ("eager", "sdpa", "flash_attention_2", "none", ""),
    "--shape": ("small", "small-next", "none", ""),
    "--preset": ("table-4", "table-7", "equal-budgets", "none", ""),
    "--method": ("vitcop", "fastv,visionzip", "vitcop(layers=(1, 6))", "vitcop(layers=(9, 9))", "none", "vitcop(", ""),
    "--questions": FILES,
    "--question": ("Where?", "", "\0", "x" * 5000, "0.png"),
    "--out": PLACES,
    "--prompt": ("Where?", "", "x" * 5000),
    "--workers": ("0", "-1", "x", ""),
    "--ray": ("", "nowhere:1", "auto"),
}
WEIGHED = {
    "ask": 12,
    "batch": 6,
    "show": 5,
    "scene": 8,
    "bench": 1.5,
    "compare": 1.5,
    "analyze": 0.5,
    "doctor": 1,
    "none": 1,
}


def prepare(folder: Path) -> Trial:
    """Loads a model once; a trial runs a command that is right but for one to four of its words."""
    torch.set_num_threads(1)
    model = checkpoint(folder / "model")
    with_one_model(model)
    Image.linear_gradient("L").resize((60, 60)).save(folder / "0.png")
    (folder / "text.jpg").write_text("no picture")
    question = {"image": "0.png", "question": "Where?"}
    (folder / "lines.jsonl").write_text(f"{json.dumps(question)}\n{json.dumps(question)}\n")
    good, console = set(folder.iterdir()), Console()

    def trial(random: Random) -> None:
        try:
            if console.run(command_line(str(model), random)).code:
                raise RefusedError
        finally:
            left = set(folder.iterdir()) - good
            try:
                if left:
                    check_folder(folder)
            finally:
                for path in left:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    return trial


@cache
def options_of(name: str) -> tuple[str, ...]:
    """The options of a command that this kind has values for."""
    command: Any = get_command(app)
    found = {option for each in command.commands[name].params for option in each.opts} if name != "none" else {*OPTIONS}
    return tuple(sorted(found & {*OPTIONS} - {"--help", "--debug"}))


def command_line(model: str, random: Random) -> list[str]:
    (name,) = random.choices([*WEIGHED], [*WEIGHED.values()])
    use = ["--model", model, "--device", "cpu"]
    short = ["--method", "vitcop", "--retain", "1/3"]
    lines: dict[str, list[str]] = {
        "ask": ["ask", "0.png", "Where?", *use, "--max-new-tokens", "1"],
        "show": ["show", "0.png", *use, "--out", "case.png"],
        "batch": ["batch", "lines.jsonl", "--out", "case.jsonl", *use, "--max-new-tokens", "1"],
        "scene": ["scene", "--out", "case.png"],
        "bench": ["bench", "--shape", "small", "--repeats", "1", "--new-tokens", "1", "--brief", *short],
        "compare": ["compare", "--limit", "2", "--timing", "0", "--max-new-tokens", "1", "--out", "out", *short, *use],
        "analyze": ["analyze", "0.png", "--out", "out", *use],
    }
    words = lines.get(name, [name])
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        known = options_of(name) if random.random() < 0.9 else OPTIONS
        option = random.choice([*known])
        values = OPTIONS[option]
        words = words or [""]
        given = [option, random.choice(values)] if values else [option]
        what = random.random()
        if what < 0.75:
            words += given if random.random() < 0.9 else ["=".join(given)]
        elif what < 0.85:
            words[random.randrange(len(words))] = random.choice(FILES)
        elif what < 0.9:
            del words[random.randrange(len(words))]
        elif what < 0.95:
            place = random.randrange(len(words))
            words[place] = mutated_text(words[place], random)
        else:
            words.append(random.choice((*FILES, "-", "--", "-x")))
    return words
