"""Questions with the answers that count as right: the demo's held-out ones, or anyone's."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from vitcop_llava.tools.demo.questions import KINDS, sample_questions
from vitcop_llava.tools.demo.scenes import render, sample_scene
from vitcop_llava.tools.media.images import read_image
from vitcop_llava.tools.media.video_support import Sampling, is_video, need_support
from vitcop_llava.tools.model.answer import Medium

DEMO_QUESTIONS = 2000
"""How many of the demo's questions are asked where nothing else is said."""


@dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        number: Its line in the file that it came from; of the demo's questions its place among them. From 1.
        question: The text.
        answers: What counts as right; at least one.
        images: The files that it is about: images, and videos, which are known by their names.
        scene: The seed of the demo's scene that it is about, where it has no files.
        kind: A label to count it under.
        key: A name of the caller's own.
    """

    number: int
    question: str
    answers: tuple[str, ...]
    images: tuple[Path, ...] = ()
    scene: int | None = None
    kind: str | None = None
    key: str | int | None = None

    @property
    def is_about_video(self) -> bool:
        """Whether a video is among its files."""
        return any(map(is_video, self.images))

    @property
    def group(self) -> Hashable:
        """What it is about. Questions about one image are no independent trials."""
        return self.images or self.scene

    def open(self, side: int, sampling: Sampling) -> list[Medium]:
        """Open its images and clips.

        Args:
            side: Pixels, of a scene, which is drawn.
            sampling: Which frames of a video.

        Raises:
            TypeError, ValueError: A file cannot be used.
        """
        found: list[Medium] = [] if self.scene is None else [*scene_images(self.scene, side)]
        for path in self.images:
            found.append(need_support().read_clip(path, sampling) if is_video(path) else read_image(path))
        return found


@dataclass(frozen=True)
class Fault:
    """A line of a question file that cannot be asked, and why."""

    number: int
    error: str


@dataclass(frozen=True)
class QuestionSet:
    """Questions, where they came from, and the lines that are none."""

    source: str
    items: tuple[Item, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def have_video(self) -> bool:
        """Whether one is about a video."""
        return any(item.is_about_video for item in self.items)

    @property
    def digest(self) -> str:
        """What tells this set from another: a hash of texts, answers and file names."""
        return hashlib.sha256(repr(self.items).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def demo_questions(limit: int = DEMO_QUESTIONS) -> QuestionSet:
    """Return questions about held-out scenes: one of each kind a scene, where the scene has one of that kind.

    Args:
        limit: How many. Scenes count from seed 0 on, and the demo model was trained on seeds from 1000000 on.
    """
    found = islice((item for seed in count() for item in scene_questions(seed)), limit)
    items = [replace(item, number=number) for number, item in enumerate(found, start=1)]
    return QuestionSet("the demo's held-out scenes", tuple(items))


def scene_images(seed: int, side: int) -> list[Image.Image]:
    """Return a scene, ``side`` pixels wide."""
    return [render(sample_scene(seed), side)]


def scene_questions(seed: int) -> list[Item]:
    """Return one question of each kind about a scene, where it has one of that kind, numbered from 1."""
    rng, drawn = np.random.default_rng([seed, 2]), sample_scene(seed)
    asked = [question for kind in KINDS for question in sample_questions(drawn, kind, 1, rng)]
    return [
        Item(number, question.text, (question.answer,), scene=seed, kind=question.kind)
        for number, question in enumerate(asked, start=1)
    ]


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Return the batches that questions are asked in: consecutive ones, whatever becomes of them."""
    return [items[start : start + size] for start in range(0, len(items), size)]
