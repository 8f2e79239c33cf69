"""Requests to the models: prompts without pictures, failures, rounds, likelihoods by hand, and every family."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image
from typer.testing import CliRunner

from vitcop_core import find_method
from vitcop_llava.tools.cli import app
from vitcop_llava.tools.demo.scenes import render, sample_scene
from vitcop_llava.tools.lmms.engine import Engine
from vitcop_llava.tools.lmms.generation import read_generation
from vitcop_llava.tools.lmms.model import Vitcop, VitcopChat
from vitcop_llava.tools.lmms.prompts import Prompt, turn_of
from vitcop_llava.tools.lmms.prompts import render as render_prompt
from vitcop_llava.tools.lmms.visuals import Clipping
from vitcop_llava.tools.model.loading import Loaded

SETTINGS = {"max_new_tokens": 6}
COLOR = "What color is the square?"


def scene(seed: int) -> Image.Image:
    return render(sample_scene(seed))


@contextmanager
def made(kind: type[Vitcop], loaded: Loaded, **arguments: Any) -> Iterator[Vitcop]:
    """A model that is cleaned up after a while, as lmms-eval does it."""
    model = kind(loaded=loaded, **arguments)
    try:
        yield model
    finally:
        model.clean()


def ask(model: Vitcop, asked: Sequence[tuple[str, list[Any]]], settings: dict[str, Any] = SETTINGS) -> list[str]:
    """What a model answers to texts with visuals, as lmms-eval asks it."""
    model.task_dict = {"task": {"test": [visuals for _, visuals in asked]}}
    requests = []
    for number, (text, _) in enumerate(asked):
        where, metadata = (number, "task", "test"), {"task": "task", "doc_id": number, "repeats": 1}
        if model.is_simple:
            arguments: tuple[Any, ...] = (text, settings, list, *where)
        else:
            parts = [{"type": "text", "text": text}]

            def messages(visuals: list[Any], parts: list[Any] = parts) -> list[dict[str, Any]]:
                return [{"role": "user", "content": [*({"type": "image", "url": each} for each in visuals), *parts]}]

            arguments = (text, messages, settings, *where)
        requests.append(Instance("generate_until", arguments, 0, metadata))
    return [found.text for found in model.generate_until(requests)]


@pytest.mark.parametrize("kind", [Vitcop, VitcopChat])
@pytest.mark.parametrize("retain", ["all", "1/3"])
def test_a_prompt_without_a_picture_gets_none_of_its_neighbors(kind: type[Vitcop], retain: str, demo: Loaded) -> None:
    asked: list[tuple[str, list[Any]]] = [(COLOR, [scene(3)]), (COLOR, []), (COLOR, [scene(8)]), ("red square", [])]
    with made(kind, demo, retain=retain, batch_size=4) as model:
        together = ask(model, asked)
    with made(kind, demo, retain=retain) as model:
        assert together == [ask(model, [each])[0] for each in asked]
    with made(kind, demo, method="none") as model:
        assert together[1:2] == ask(model, asked[1:2])


def test_what_fails_is_an_error_and_no_empty_answer(demo: Loaded) -> None:
    asked: list[tuple[str, list[Any]]] = [(COLOR, [scene(3)]), (COLOR, [{"array": [0.0], "sampling_rate": 16000}])]
    with made(Vitcop, demo, batch_size=2) as model:
        with pytest.raises(TypeError, match="visual must be a picture"):
            ask(model, asked)
        with pytest.raises(ValueError, match="prompt must have a place for each of 1 images, got 3"):
            ask(model, [("<image> and <image>?", [scene(3)])])
        with pytest.raises(ValueError, match=r"must read clips.*got a LlavaFor"):
            ask(model, [(COLOR, [np.zeros((3, 20, 20, 3), np.uint8)])])
        with pytest.raises(ValueError, match="generation_kwargs must be among"):
            ask(model, asked[:1], {"beams": 3})
    with pytest.raises(RuntimeError, match="was let go"):
        ask(model, asked[:1])
    with made(Vitcop, demo, method="none") as model:  # nothing is left on the model
        assert ask(model, asked[:1]) != [""]


def test_an_answer_ends_before_what_a_task_says(demo: Loaded) -> None:
    listing = "What is in the picture?"
    model = Vitcop(loaded=demo, method="none", batch_size=3)
    asked: list[tuple[str, list[Any]]] = [(listing, [scene(seed)]) for seed in (3, 4, 8)]
    whole = ask(model, asked, {"max_new_tokens": 40})
    ended = ask(model, asked, {"max_new_tokens": 40, "until": [" and", "\n"]})
    assert ended == [text.split(" and")[0] for text in whole]
    assert ended != whole
    engine = model.engine
    prompt = render_prompt(demo.processor, [turn_of(listing, [scene(4)], Clipping())])
    short, long = (
        engine.answer([prompt], read_generation({"max_new_tokens": 40, "until": until}))[0].tokens
        for until in ("and", ())
    )
    assert short < long


def test_rounds_go_on_until_the_task_ends_them(demo: Loaded) -> None:
    model, seen = VitcopChat(loaded=demo, method="none"), []

    def messages(doc: Any, round_idx: int = 0, previous_output: Any = None, previous_round_info: Any = None) -> Any:
        seen.append((round_idx, previous_output))
        turn = [{"role": "user", "content": [{"type": "image", "url": doc}, {"type": "text", "text": COLOR}]}]
        return turn if round_idx == 0 else (turn, round_idx == 2, None, None)

    model.task_dict = {"task": {"test": [scene(3)]}}
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    request = Instance("generate_until_multi_round", ("", messages, SETTINGS, 0, "task", "test"), 0, metadata)
    ((first, second),) = model.generate_until_multi_round([request])
    assert first == second != ""
    assert [number for number, _ in seen] == [0, 1, 2]
    assert seen[2][1] == [first, second]
    with pytest.raises(NotImplementedError, match="leave out --force_simple"):
        Vitcop(loaded=demo, method="none").generate_until_multi_round([request])


def test_a_likelihood_is_that_of_the_unpruned_model(demo: Loaded) -> None:
    engine = Engine(demo, None)
    prompt = render_prompt(demo.processor, [turn_of("Where is the red circle?", [scene(4)], Clipping())])
    inputs = engine._inputs([prompt])
    for answer in ("top right", "red", "one two three"):
        tokens = demo.processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([inputs["input_ids"], tokens], 1)
        with torch.inference_mode():
            logits = demo.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -tokens.shape[1] - 1 : -1]
        wanted = torch.nn.functional.cross_entropy(logits, tokens[0]).item()
        (score,) = engine.score([prompt], [answer])
        assert score.loss == pytest.approx(wanted, abs=1e-5)
        assert score.is_greedy == bool((logits.argmax(-1) == tokens[0]).all())
    with pytest.raises(ValueError, match="answer must have a token"):
        engine.score([prompt], [" "])


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(frames: int) -> Any:
    return np.random.default_rng(frames).integers(0, 256, (frames, 50, 60, 3), dtype=np.uint8)


PICTURES: list[tuple[str, list[Any]]] = [
    ("what is w10", [noise(38, 41)]),
    ("w11 w12 is this", [noise(120, 90), noise(50, 30)]),
    ("w20", []),
    ("<image> w5 <image> w8", [noise(30, 70), noise(44, 44)]),
]
VIDEOS: list[tuple[str, list[Any]]] = [("is w30", [clip(3)]), ("w31", [clip(5)]), ("w33", [clip(3), noise(70, 119)])]
TARGETS = ["w10 w11", "w12", "what is this", "w30 w40", "w9", "w8 w7", "w50"]


def run(loaded: Loaded, method: str | None, prompts: Sequence[Prompt], size: int) -> tuple[Any, Any, dict[str, float]]:
    """Answers, scores, and costs of the answers."""
    engine, answers, scores = Engine(loaded, find_method(method) if method else None), list[Any](), list[Any]()
    parts = [slice(start, start + size) for start in range(0, len(prompts), size)]
    for part in parts:
        answers += engine.answer(prompts[part], read_generation(SETTINGS))
    costs = engine.costs.means()
    for part in parts:
        scores += engine.score(prompts[part], TARGETS[: len(prompts)][part])
    engine.close()
    return answers, scores, costs


@pytest.mark.parametrize("name", ["llava-next", "onevision", "qwen2.5"])
def test_every_family_keeps_everything_and_prunes_in_batches(name: str, family: Callable[[str], Loaded]) -> None:
    loaded, asked = family(name), PICTURES + (VIDEOS if name == "onevision" else [])
    prompts = [render_prompt(loaded.processor, [turn_of(text, visuals, Clipping())]) for text, visuals in asked]
    plain = {size: run(loaded, None, prompts, size) for size in (1, 8)}
    for size, wanted in plain.items():
        answers, scores, costs = run(loaded, "vitcop(retention_ratio=1)", prompts, size)
        assert (answers, scores) == wanted[:2]
        assert costs == pytest.approx(wanted[2])
    assert [each.text for each in plain[1][0]] == [each.text for each in plain[8][0]]
    pruned = "vitcop(retention_ratio=0.34, cutoff_distance=3.0)"
    alone, together = run(loaded, pruned, prompts, 1), run(loaded, pruned, prompts, 8)
    assert alone[0] == together[0]
    assert alone[2] == pytest.approx(together[2])
    assert alone[2]["visual_tokens_kept"] < 0.4 * alone[2]["visual_tokens"]
    assert [each.loss for each in alone[1]] == pytest.approx([each.loss for each in together[1]], abs=1e-3)


def test_commands_take_onevision(family: Callable[[str], Loaded], folder: Path) -> None:
    loaded, scenes, clips = family("onevision"), folder / "scenes", folder / "clips"
    shown = [str(scenes / "0.png"), str(clips / "0.mp4"), str(scenes / "1.png"), "what is this", "--retain", "1/2"]
    run = CliRunner().invoke(app, ["ask", *shown, "--model", loaded.source, "--max-new-tokens", "4", "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert len(found["clips"]) == 1
    assert found["pruned"]["answer"]
    drawn = CliRunner().invoke(app, ["show", shown[0], "--model", loaded.source, "--out", str(folder / "kept.png")])
    assert drawn.exit_code == 0, drawn.output
    assert (folder / "kept.png").is_file()
