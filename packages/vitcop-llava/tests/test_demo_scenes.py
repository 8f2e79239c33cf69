"""The demo's scenes and questions: the same seed gives the same picture, and answers say what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcop_llava.tools.demo.questions import KINDS, NUMBERS, listing, questions_about, sample_questions, vocabulary
from vitcop_llava.tools.demo.scenes import CELLS, COLORS, MAX_SHAPES, render, sample_scene, shape_map

SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_scene_follows_from_its_seed(seed: int) -> None:
    scene = sample_scene(seed)
    assert scene == sample_scene(seed)
    assert 1 <= len(scene.shapes) <= MAX_SHAPES
    cells = [CELLS.index(item.cell) for item in scene.shapes]
    assert cells == sorted(set(cells))
    assert len({(item.color, item.shape) for item in scene.shapes}) == len(scene.shapes)


@pytest.mark.parametrize("size", [168, 336])
def test_picture_is_reproducible_and_shows_its_shapes(size: int) -> None:
    scene = sample_scene(5)
    picture = np.asarray(render(scene, size))
    assert np.array_equal(picture, np.asarray(render(scene, size)))
    ids = shape_map(scene, size)
    assert set(np.unique(ids)) == set(range(len(scene.shapes) + 1))
    for number, item in enumerate(scene.shapes, start=1):
        # The median is free of the mark and of smoothed edges; the shade varies by a sixth at most.
        drawn = np.median(picture[ids == number], axis=0)
        assert np.abs(drawn - np.array(COLORS[item.color])).max() < 45


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_answers_say_what_the_scene_holds(seed: int) -> None:
    scene = sample_scene(seed)
    known = set(vocabulary())
    for question in questions_about(scene):
        words = (question.text + " " + question.answer).lower().replace("?", " ?").split()
        assert set(words) <= known
        if question.kind == "count":
            assert question.answer in NUMBERS
        else:
            assert question.about in scene.shapes
    total = next(q for q in questions_about(scene) if q.text == "How many shapes are there?")
    assert NUMBERS.index(total.answer) == len(scene.shapes)
    assert listing(scene).answer.count(" and ") == len(scene.shapes) - 1


def test_questions_name_one_shape_only() -> None:
    for seed in range(50):
        scene = sample_scene(seed)
        for question in questions_about(scene):
            if question.kind == "color":
                named = question.text.removeprefix("What color is the ").removesuffix("?")
                assert [item.color for item in scene.shapes if item.shape == named] == [question.answer]


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_questions_are_of_their_kind_and_different(kind: str) -> None:
    for seed in range(20):
        found = sample_questions(sample_scene(seed), kind, 2, np.random.default_rng(seed))
        assert all(question.kind == kind for question in found)
        assert len({question.text for question in found}) == len(found) <= 2
