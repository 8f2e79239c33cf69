"""Questions about a demo clip, with their answers: what happens in what order, where to, how often, what changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitcop_llava.tools.demo.questions import NUMBERS, Question
from vitcop_llava.tools.demo.scenes import CELLS
from vitcop_video.demo.events import DIRECTIONS, Event, EventClip, sample_clip

KINDS = ("order", "direction", "count", "change", "which", "start", "end")
"""The kinds that are scored; the listing is trained on and can be asked for, but is not part of the score."""

LISTING = "What happens?"
_VERBS = {"appears": "appear", "leaves": "leave", "moves": "move"}


@dataclass(frozen=True)
class ClipQuestion:
    """A question about a held-out clip."""

    seed: int
    kind: str
    text: str
    answer: str


def questions_about(clip: EventClip) -> list[Question]:
    """Return every question that can be asked about a clip, in a fixed order."""
    names = [actor.name for actor in clip.actors]
    told, found = [_told(clip, event) for event in clip.events], list[Question]()
    if len(told) > 1:
        found += [Question("order", f"What happens {when}?", told[k]) for when, k in (("first", 0), ("last", -1))]
    for event in clip.events:
        if event.direction is not None:
            found.append(Question("direction", f"Where does the {names[event.actors[0]]} move?", event.direction))
    found += _counts(clip, names)
    for number, name in enumerate(names):
        found.append(Question("change", f"What happens to the {name}?", _change(clip, number)))
        for kind, frame in (("start", 0), ("end", -1)):
            cell = clip.cells[frame][number]
            if cell is not None:
                found.append(Question(kind, f"Where is the {name} at the {kind}?", CELLS[cell]))
    return found


def sample_questions(clip: EventClip, kind: str, count: int, rng: np.random.Generator) -> list[Question]:
    """Return up to ``count`` different questions of one kind, fewer where the clip does not have that many."""
    pool = [question for question in questions_about(clip) if question.kind == kind]
    picks = rng.permutation(len(pool))[:count]
    return [pool[int(pick)] for pick in picks]


def held_out(clips: int) -> list[ClipQuestion]:
    """Return one question for each of the first ``clips`` clips: of the kind whose turn it is, or the next that it
    has.
    """
    asked = []
    for seed in range(clips):
        clip, rng = sample_clip(seed), np.random.default_rng([seed, 4])
        kinds = [KINDS[(seed + turn) % len(KINDS)] for turn in range(len(KINDS))]
        found = next(question for kind in kinds for question in sample_questions(clip, kind, 1, rng))
        asked.append(ClipQuestion(seed, found.kind, found.text, found.answer))
    return asked


def listing(clip: EventClip) -> Question:
    """Return the question that tells the clip: ``start left red circle then blue star appears at top then ...``."""
    names = [actor.name for actor in clip.actors]
    there = sorted((cell, name) for cell, name in zip(clip.cells[0], names, strict=False) if cell is not None)
    parts = ["start " + " and ".join(f"{CELLS[cell]} {name}" for cell, name in there)]
    for event in clip.events:
        cell = clip.cells[-1][event.actors[0]]
        at = {"appears": "at", "moves": "to"}.get(event.kind)
        parts.append(_told(clip, event) + (f" {at} {CELLS[cell]}" if at and cell is not None else ""))
    return Question("listing", LISTING, " then ".join(parts))


def new_words() -> list[str]:
    """Return every word of questions and answers that the image demo does not know, sorted."""
    words = set("happens happen first last then at start end to which does things stays swap swaps".split())
    return sorted(words | set(_VERBS) | set(_VERBS.values()) | set(DIRECTIONS))


def _counts(clip: EventClip, names: list[str]) -> list[Question]:
    """Return how many shapes do something, and which where it is one; a swap is no move, but who would say so."""
    found = [Question("count", "How many things happen?", NUMBERS[len(clip.events)])]
    kinds = [event.kind for event in clip.events]
    for kind, verb in _VERBS.items():
        if kind == "moves" and "swap" in kinds:
            continue
        found.append(Question("count", f"How many shapes {verb}?", NUMBERS[kinds.count(kind)]))
        if kinds.count(kind) == 1:
            name = names[clip.events[kinds.index(kind)].actors[0]]
            found.append(Question("which", f"Which shape {kind}?", name))
    return found


def _told(clip: EventClip, event: Event) -> str:
    """Return a sentence. Of two that swap, the one that stands first in raster order is named first."""
    actors = sorted(event.actors, key=lambda number: clip.cells[0][number] or 0)
    subject = " and ".join(clip.actors[number].name for number in actors)
    return f"{subject} {event.kind}" + (f" {event.direction}" if event.direction else "")


def _change(clip: EventClip, number: int) -> str:
    for event in clip.events:
        if number in event.actors:
            kind = "swaps" if event.kind == "swap" else event.kind
            return f"{kind} {event.direction}" if event.direction else kind
    return "stays"
