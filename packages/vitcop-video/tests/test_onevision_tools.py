"""The picture of a clip on a LLaVA-OneVision checkpoint, whose frames become smaller grids of tokens."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from small_checkpoints import save
from typer.testing import CliRunner

from vitcop_llava.tools.cli import app


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_show_draws_a_clip_frame_by_frame(tmp_path: Path) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "kept.png"
    run("scene", "--clip", "--out", clip)
    found = json.loads(
        run(
            *("show", clip, "--model", save(tmp_path / "onevision", "onevision"), "--retain", "1/2", "--frames", 4),
            *("--out", out, "--json"),
        )
    )
    assert found["visual_tokens"] == 4 * 9
    with Image.open(out) as drawn:
        drawn.load()
