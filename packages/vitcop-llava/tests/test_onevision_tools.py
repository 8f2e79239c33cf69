"""The commands that draw and measure, on a LLaVA-OneVision checkpoint: pictures in tiles, interpolated or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_checkpoints import save
from typer.testing import CliRunner

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.model.loading import load

SIZES = {"large": (120, 90), "flat": (20, 120), "small": (24, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("onevision"), "onevision")


@pytest.fixture(params=SIZES)
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    height, width = SIZES[request.param]
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def tokens_of(folder: Path, picture: Path) -> int:
    anyres = load(str(folder), device="cpu").parts.anyres
    assert anyres is not None
    with Image.open(picture) as opened:
        found: int = anyres.tile(opened.height, opened.width).tokens
    return found


def test_show_draws_the_tokens_that_survive(folder: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    found = run("show", picture, "--model", folder, "--retain", "1/2", "--out", out)
    assert found["visual_tokens"] == tokens_of(folder, picture)
    with Image.open(out) as drawn:
        assert drawn.width > 3 * 336
        assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 10


def test_analyze_sees_every_token(folder: Path, picture: Path, tmp_path: Path) -> None:
    run("analyze", picture, "--model", folder, "--question", "what is this", "--out", tmp_path / "found")
    stored = json.loads((tmp_path / "found" / "data.json").read_text())
    assert stored["visual_tokens"] == [tokens_of(folder, picture)]
    assert stored["vision_saliency"] == "received"
