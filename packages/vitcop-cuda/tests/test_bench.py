"""The bench measures what it says, at sizes that take a moment."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcop_cuda.bench import __main__ as bench
from vitcop_cuda.bench.formulations import FourCalls, broadcast_vic, vic_inputs
from vitcop_cuda.bench.measures import broadcast_at, power_law
from vitcop_cuda.bench.report import draw_growth, kernels_table

RATES = ("copy_bytes", "float32_operations", "float64_operations")
SETTINGS = "--tokens 8 16 24 --broadcast 8 --batches 1 2 --repeats 1 --broadcast-repeats 1"


def test_bench_stores_every_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(bench, "PEAK_TOKENS", 100)
    monkeypatch.setattr(bench, "rates", lambda *_: dict.fromkeys(RATES, 1e9))
    prefill = tmp_path / "prefill.json"
    row = {"method": "ViTCoP", "retained_tokens": 64, "prefill": {"median": 2.0}}
    prefill.write_text(json.dumps({"rows": [row]}))
    out = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["bench", *SETTINGS.split(), "--prefill", str(prefill), "--out", str(out)])
    bench.main()
    stored = json.loads(out.read_text())
    assert stored["command"].startswith("python -m vitcop_cuda.bench --tokens 8")
    assert [row["tokens"] for row in stored["vic"]] == [8, 16, 24]
    assert stored["four_calls"]["prefill_seconds"] == 2.0
    assert stored["growth_by_batch"][0]["over_one"] == 1.0
    assert "broadcast, n = 8" in capsys.readouterr().out
    assert "| 24 | " in kernels_table(stored)
    if importlib.util.find_spec("matplotlib") is not None:
        draw_growth(stored, tmp_path / "growth.png")
        assert (tmp_path / "growth.png").stat().st_size > 1000


def test_broadcast_formulation_clusters_as_the_kernel_does() -> None:
    given = vic_inputs(60, 1, "cpu", 0)
    labels = broadcast_vic(*given)
    theirs = torch.ops.vitcop.vic(*given)[0][0]
    clustered = labels >= 0  # tokens without a denser one nearby may stay out, as in the released code
    assert clustered.float().mean() > 0.5
    assert (labels[clustered] == theirs[clustered]).float().mean() > 0.8


def test_broadcast_that_does_not_fit_is_skipped_and_says_so() -> None:
    row = broadcast_at(10**6, 1, "cpu")
    assert "skipped" in row
    assert "GiB, more than half" in row["skipped"]


def test_four_calls_are_those_of_the_plan() -> None:
    calls = FourCalls("cpu", 0)
    assert (calls.vic[0].shape, calls.vic[2]) == ((1, 172, 1024), 21)
    calls.kernels()
    calls.references()


def test_power_law_finds_the_exponent() -> None:
    law = power_law({n: 3e-9 * n**2 for n in (172, 288, 576, 1152)})
    assert "exponent" in law
    assert math.isclose(law["exponent"], 2)
    assert math.isclose(law["factor"], 3e-9)
    assert math.isclose(law["from_tokens"], 288)
