"""Questions about a demo scene, with their answers.

Six kinds: the color of a shape, the shape of a color, where a shape is, how many there are, which small mark a shape
carries (the kind that takes fine detail), and a listing of the whole scene. A question that names a shape is asked only
where the name fits one shape of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitcop_llava.tools.demo.scenes import CELLS, COLORS, MARKS, SHAPES, Scene, SceneShape

KINDS = ("color", "shape", "where", "count", "mark")
"""The kinds that are scored; the listing is trained on and can be asked for, but is not part of the score."""

NUMBERS = ("zero", "one", "two", "three", "four", "five")
LISTING = "What is in the picture?"


@dataclass(frozen=True)
class Question:
    """A question of one kind, its exact answer, and the scene's shape it is about (None: the whole scene)."""

    kind: str
    text: str
    answer: str
    about: SceneShape | None = None


def questions_about(scene: Scene) -> list[Question]:
    """Return every question that can be asked about a scene, in a fixed order."""
    shapes = scene.shapes
    found: list[Question] = []
    for item in shapes:
        full = f"{item.color} {item.shape}"
        if sum(other.shape == item.shape for other in shapes) == 1:
            found.append(Question("color", f"What color is the {item.shape}?", item.color, item))
        if sum(other.color == item.color for other in shapes) == 1:
            found.append(Question("shape", f"What shape is {item.color}?", item.shape, item))
        found.append(Question("where", f"Where is the {full}?", item.cell, item))
        found.append(Question("mark", f"What mark is on the {full}?", item.mark or "none", item))
    found.append(Question("count", "How many shapes are there?", NUMBERS[len(shapes)]))
    for color in COLORS:
        count = sum(item.color == color for item in shapes)
        found.append(Question("count", f"How many {color} shapes are there?", NUMBERS[count]))
    for shape in SHAPES:
        count = sum(item.shape == shape for item in shapes)
        found.append(Question("count", f"How many {plural(shape)} are there?", NUMBERS[count]))
    return found


def sample_questions(scene: Scene, kind: str, count: int, rng: np.random.Generator) -> list[Question]:
    """Return up to ``count`` different questions of one kind, fewer where the scene does not have that many.

    A third of the counting questions is about all shapes and most others about a color or shape that is there: drawn
    evenly, two thirds of the answers would be zero.
    """
    pool = [question for question in questions_about(scene) if question.kind == kind]
    if not pool:
        return []
    if kind == "count":
        weights = np.array([4.0] + [0.3 if question.answer == "zero" else 1.5 for question in pool[1:]])
    else:
        weights = np.ones(len(pool))
    picks = rng.choice(len(pool), size=min(count, len(pool)), replace=False, p=weights / weights.sum())
    return [pool[int(pick)] for pick in picks]


def listing(scene: Scene) -> Question:
    """Return the question that lists the scene in raster order: ``top left red circle with dot and ...``."""
    parts = [
        f"{item.cell} {item.color} {item.shape}" + (f" with {item.mark}" if item.mark else "") for item in scene.shapes
    ]
    return Question("listing", LISTING, " and ".join(parts))


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return shape + ("es" if shape == "cross" else "s")


def vocabulary() -> list[str]:
    """Return every word of the questions, the answers and the prompt around them, sorted."""
    words = set(
        "user assistant : ? . what color shape is the where mark on how many shapes are there in picture".split()
    )
    words |= set("with and none".split()) | set(COLORS) | set(SHAPES) | set(MARKS) | set(NUMBERS)
    words |= {plural(shape) for shape in SHAPES} | {word for cell in CELLS for word in cell.split()}
    return sorted(words)
