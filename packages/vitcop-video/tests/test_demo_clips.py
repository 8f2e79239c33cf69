"""The demo's clips and questions: the same seed gives the same frames, and answers say what is seen in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vitcop_llava.tools.demo.questions import NUMBERS
from vitcop_llava.tools.demo.scenes import CELLS, COLORS
from vitcop_video import read_video
from vitcop_video.demo.build import words
from vitcop_video.demo.events import FRAMES, MAX_SHAPES, EventClip, render_clip, sample_clip
from vitcop_video.demo.files import main as write_files
from vitcop_video.demo.files import write_demo_clip
from vitcop_video.demo.questions import KINDS, held_out, listing, questions_about, sample_questions
from vitcop_video.demo.sheet import main as draw

SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_clip_follows_from_its_seed(seed: int) -> None:
    clip = sample_clip(seed)
    assert clip == sample_clip(seed)
    assert len(clip.cells) == len(clip.places) == FRAMES
    assert 1 <= len(clip.events) <= 2
    assert len(clip.actors) <= MAX_SHAPES
    assert (
        len({actor.color for actor in clip.actors}) == len({actor.shape for actor in clip.actors}) == len(clip.actors)
    )
    taking_part = [actor for event in clip.events for actor in event.actors]
    assert len(taking_part) == len(set(taking_part))
    for cells in clip.cells:
        there = [cell for cell in cells if cell is not None]
        assert there
        assert len(there) == len(set(there))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_every_state_is_seen_twice_at_least(seed: int) -> None:
    clip = sample_clip(seed)
    for place in set(clip.places):
        moving = any(event.kind == "moves" and clip.places[event.frame] == place for event in clip.events)
        assert clip.places.count(place) == 1 if moving else clip.places.count(place) >= 2
    assert len(set(clip.places)) == 1 + sum(1 + (event.kind == "moves") for event in clip.events)


@pytest.mark.parametrize("seed", range(12))
def test_frames_show_their_shapes_where_they_are(seed: int) -> None:
    clip = sample_clip(seed)
    frames = render_clip(clip)
    assert frames.shape == (FRAMES, 168, 168, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, render_clip(clip))
    for frame, places in zip(frames, clip.places, strict=True):
        for actor, place in zip(clip.actors, places, strict=True):
            across, down = _middle_of(frame, COLORS[actor.color])
            if place is None:
                assert np.isnan(across)
            else:
                assert across == pytest.approx(place[0], abs=0.03)
                assert down == pytest.approx(place[1], abs=0.03)


@pytest.mark.parametrize("seed", range(60))
def test_answers_follow_from_the_frames(seed: int) -> None:
    """The cells of each color are found in the pixels, and the answers told from those alone."""
    clip = sample_clip(seed)
    paths = _paths(clip)
    changes = {name: _change(name, paths) for name in paths}
    for question in questions_about(clip):
        text, answer = question.text, question.answer
        named = [name for name in paths if name in text]
        if question.kind in ("start", "end"):
            assert CELLS.index(answer) == paths[named[0]][0 if question.kind == "start" else -1]
        elif question.kind == "change":
            assert answer == changes[named[0]]
        elif question.kind == "direction":
            assert f"moves {answer}" == changes[named[0]]
        elif question.kind == "which":
            assert changes[answer].split()[0] == text.split()[-1].strip("?")
        elif question.kind == "order":
            assert answer == _sentences(paths)[0 if "first" in text else -1]
        elif "things" in text:
            assert NUMBERS.index(answer) == len(_sentences(paths))
        else:
            verb = text.split()[-1].strip("?")
            assert NUMBERS.index(answer) == sum(change.split()[0] == verb + "s" for change in changes.values())


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_questions_use_the_words_of_the_tokenizer(seed: int) -> None:
    known, clip = set(words()), sample_clip(seed)
    asked = [*questions_about(clip), listing(clip)]
    assert len({question.text for question in asked}) == len(asked)
    for question in asked:
        assert set(f"{question.text} {question.answer}".lower().replace("?", " ?").split()) <= known
    assert listing(clip).answer.count(" then ") == len(clip.events)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_questions_are_of_their_kind_and_different(kind: str) -> None:
    for seed in range(20):
        found = sample_questions(sample_clip(seed), kind, 2, np.random.default_rng(seed))
        assert all(question.kind == kind for question in found)
        assert len({question.text for question in found}) == len(found) <= 2


def test_written_clip_has_the_frames_of_the_seed(tmp_path: Path) -> None:
    path = write_demo_clip(tmp_path / "clip.mp4", 3)
    video = read_video(path, frames=FRAMES)
    assert video.seconds.tolist() == [number / 2 for number in range(FRAMES)]
    assert np.abs(video.frames.astype(int) - render_clip(sample_clip(3), 336)).mean() < 3


@pytest.mark.parametrize("size", [0, -2, 335])
def test_clip_of_odd_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be positive and even, got {size}"):
        write_demo_clip(tmp_path / "clip.mp4", 3, size)


def test_sheet_is_drawn(tmp_path: Path) -> None:
    draw(["--seed", "3", "--out", str(tmp_path / "sheet.png")])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 168


def _middle_of(frame: NDArray[np.uint8], color: tuple[int, int, int]) -> tuple[float, float]:
    """Center (x, y) of the bounding box of a color, shades and all, as fractions; NaN where it is not there."""
    pixels, ink = frame.astype(float), np.array(color, dtype=float)
    length = np.linalg.norm(pixels, axis=2)
    alike = (pixels @ ink) / (length * np.linalg.norm(ink) + 1e-6)
    brightness = length / np.linalg.norm(ink)
    there = (alike > 0.995) & (brightness > 0.8) & (brightness < 1.12)
    if there.sum() < 150:
        return float("nan"), float("nan")
    rows, columns = np.nonzero(there)
    return (columns.min() + columns.max() + 1) / 2 / len(frame), (rows.min() + rows.max() + 1) / 2 / len(frame)


def _paths(clip: EventClip) -> dict[str, list[int | None]]:
    """The cell of each shape in each frame, as its color says; between two cells it is in neither."""
    frames, found = render_clip(clip), {}
    for actor in clip.actors:
        path: list[int | None] = []
        for frame in frames:
            across, down = _middle_of(frame, COLORS[actor.color])
            path.append(None if np.isnan(across) else int(down * 3) * 3 + int(across * 3))
        found[actor.name] = path
    return found


def _change(name: str, paths: dict[str, list[int | None]]) -> str:
    first, last = paths[name][0], paths[name][-1]
    if first is None:
        return "appears"
    if last is None:
        return "leaves"
    if first == last:
        return "stays"
    if any((path[0], path[-1]) == (last, first) for path in paths.values()):
        return "swaps"
    return "moves " + _direction(first, last)


def _direction(first: int, last: int) -> str:
    if first // 3 == last // 3:
        return "right" if last > first else "left"
    return "down" if last > first else "up"


def _sentences(paths: dict[str, list[int | None]]) -> list[str]:
    """What happens, in order; of two that swap, the one that stands first in raster order is named first."""
    found: dict[int, list[str]] = {}
    for name in sorted(paths, key=lambda name: paths[name][0] or 0):
        path = paths[name]
        if path[0] != path[-1]:
            when = next(number for number in range(FRAMES) if path[number] != path[0])
            found.setdefault(when, []).append(name)
    sentences = []
    for _, names in sorted(found.items()):
        change = _change(names[0], paths)
        sentences.append(f"{' and '.join(names)} {'swap' if change == 'swaps' else change}")
    return sentences


def test_held_out_clips_are_written_with_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips"
    write_files(["--clips", "3", "--out", str(folder)])
    assert capsys.readouterr().out == f"{folder / 'questions.jsonl'}\n"
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    wanted = [(asked.text, asked.answer, asked.kind) for asked in held_out(3)]
    assert [(line["question"], line["answer"], line["kind"]) for line in lines] == wanted
    for seed, line in enumerate(lines):
        video = read_video(line["image"], frames=FRAMES)
        assert np.abs(video.frames.astype(int) - render_clip(sample_clip(seed), 336)).mean() < 4
    with pytest.raises(SystemExit):
        write_files(["--clips", "0", "--out", str(folder)])
    assert "--clips must be at least 1, got 0" in capsys.readouterr().err
