"""``vitcop bench`` on clips: every frame is a unit, and the oracle looks at all of them."""

import json

import pytest
import torch
from typer.testing import CliRunner

from vitcop_core import ViTCoP
from vitcop_core.parsing import METHODS
from vitcop_llava.families import locate
from vitcop_llava.tools.benchmark.oracle import run_oracle
from vitcop_llava.tools.benchmark.prompts import make_prompt
from vitcop_llava.tools.benchmark.shapes import SHAPES, random_model
from vitcop_llava.tools.cli import app


def test_oracle_of_clips_runs_every_layer_at_the_length_of_the_plan() -> None:
    model = random_model(SHAPES["small-video"], torch.float32, "cpu")
    parts = locate(model)
    prompt = make_prompt(model, parts, batch=2, text_tokens=10, frames=3)
    plan = ViTCoP(retention_ratio=1 / 3).plan(8, prompt.tiling.units)
    frames: list[int] = []
    handle = parts.vision_tower.register_forward_pre_hook(lambda module, args: frames.append(len(args[0])))
    try:
        with torch.inference_mode():
            logits = run_oracle(model, parts, prompt, plan)
    finally:
        handle.remove()
    assert (prompt.tiling.units, frames) == ((36, 36, 36), [6])
    assert logits.shape == (2, 1, 32064)


@pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")
def test_bench_measures_clips_of_eight_frames_by_default() -> None:
    given = (
        "--shape small-video --dtype float32 --device cpu --repeats 1 --new-tokens 2 --retain 96 --text-tokens 6 --json"
    )
    result = CliRunner().invoke(app, ["bench", *given.split()])
    assert result.exit_code == 0, result.output
    stored = json.loads(result.stdout)
    assert (stored["frames"], stored["visual_tokens"], len(stored["rows"])) == (8, 288, 1 + len(METHODS))
    assert all(row["cache_bytes"] == row["planned_cache_bytes"] is not None for row in stored["rows"])
