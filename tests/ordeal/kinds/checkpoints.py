"""Checkpoints: a folder in which one file is another, asked through the command line."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from random import Random

import torch
from PIL import Image

from ordeal.console import Console
from ordeal.models import checkpoint
from ordeal.mutate import as_json, mutated, mutated_json
from ordeal.trials import RefusedError, Trial, documented
from vitcop_llava.tools.model.loading import WEIGHTS, load

FILES = {
    "config.json": 40,
    "processor_config.json": 20,
    WEIGHTS: 15,
    "tokenizer.json": 8,
    "tokenizer_config.json": 6,
    "generation_config.json": 5,
    "chat_template.jinja": 2,
}
OTHERS = ("preprocessor_config.json", "added_tokens.json", "special_tokens_map.json", f"{WEIGHTS}.index.json", "x.bin")


def prepare(folder: Path) -> Trial:
    """Writes a checkpoint; a trial asks one of its copies a question."""
    torch.set_num_threads(1)
    good = checkpoint(folder / "good")
    picture = folder / "picture.png"
    Image.linear_gradient("L").resize((96, 96)).save(picture)
    console = Console()

    def trial(random: Random) -> None:
        copy = folder / "copy"
        copy.mkdir()
        try:
            _copy(good, copy, random)
            if random.random() < 0.3:  # what Python is told, which is more than an exit code
                with documented(ValueError, TypeError):
                    load(str(copy), device="cpu")
                return
            words = ("ask", str(picture), "What color is the circle?", "--model", str(copy), "--device", "cpu")
            if console.run([*words, "--max-new-tokens", "2"]).code:
                raise RefusedError
        finally:
            shutil.rmtree(copy)

    return trial


def _copy(good: Path, copy: Path, random: Random) -> None:
    for path in good.iterdir():
        (copy / path.name).symlink_to(path)
    for _ in range(random.choice((1, 1, 1, 2))):
        (name,) = random.choices([*FILES], [*FILES.values()])
        if random.random() < 0.08:
            (copy / random.choice(OTHERS)).write_bytes((good / name).read_bytes()[:5000])
        elif random.random() < 0.04:
            (copy / name).unlink(missing_ok=True)
        else:
            data = (good / name).read_bytes()
            (copy / name).unlink(missing_ok=True)
            (copy / name).write_bytes(_changed(name, data, random))


def _changed(name: str, data: bytes, random: Random) -> bytes:
    if name == WEIGHTS:
        return _changed_weights(data, random)
    if name.endswith(".json"):
        return as_json(mutated_json(json.loads(data), random), random)
    return mutated(data, random)


def _changed_weights(data: bytes, random: Random) -> bytes:
    """Weights with another header: its JSON, the number before it, or its bytes; or cut short."""
    (size,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + size], data[8 + size :]
    what = random.randrange(4)
    if what < 2:
        header = as_json(mutated_json(json.loads(header), random), random)
    elif what == 2:
        return mutated(data[: 8 + size], random) + body
    else:
        body = body[: random.randrange(len(body))]
    return struct.pack("<Q", len(header)) + header + body
