"""Clips that the demo video model knows: colored shapes that appear, leave, move and swap places.

A clip is drawn from a seed alone. Its shapes stand in the cells of the image demo's 3 x 3 layout on ground that stays
as it is, one or two things happen to them, and each shape takes part in one of these at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcop_llava.tools.demo.scenes import CELLS, COLORS, SHAPES, Scene, SceneShape, render

FRAMES = 8
SIDE = 168
"""Pixels of a frame that the model sees, each way."""
MAX_SHAPES = 3
EVENTS = ("appears", "leaves", "moves", "swap")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""What a step in each direction adds to row and column."""

_WEIGHTS = {"appears": 1.0, "leaves": 1.2, "moves": 1.5, "swap": 1.0}  # leaving and swapping need two shapes
_OUTSIDE = -1.0  # where a shape is drawn that is not there: all are drawn in every frame, so that each keeps its shade


@dataclass(frozen=True)
class Actor:
    """A shape of a clip. ``radius`` and the offset from its cell's middle are fractions of the picture's side."""

    shape: str
    color: str
    radius: float
    offset: tuple[float, float]

    @property
    def name(self) -> str:
        """Its color and shape; no other shape of the clip has either."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Event:
    """Something that happens.

    Attributes:
        kind: one of `EVENTS`.
        actors: indices of the shapes that it happens to: two for a swap, else one.
        frame: the first frame that shows it.
        direction: of a move, a key of `DIRECTIONS`; else None.
    """

    kind: str
    actors: tuple[int, ...]
    frame: int
    direction: str | None = None


@dataclass(frozen=True)
class EventClip:
    """What is seen in a clip.

    Attributes:
        seed: that drew it.
        actors: its shapes, those of the start first.
        events: in order.
        cells: of every frame the cell of each shape; None where it is not there, the one it comes from while it moves.
        places: of every frame the center (x, y) of each shape as fractions of the picture's side, or None.
    """

    seed: int
    actors: tuple[Actor, ...]
    events: tuple[Event, ...]
    cells: tuple[tuple[int | None, ...], ...]
    places: tuple[tuple[tuple[float, float] | None, ...], ...]


def sample_clip(seed: int) -> EventClip:
    """Draw the clip of ``seed``: one or two shapes to begin with, one or two events, never an empty frame."""
    rng = np.random.default_rng([seed, 3])
    colors, shapes = rng.permutation(list(COLORS)), rng.permutation(SHAPES)
    actors = tuple(
        Actor(str(shape), str(color), float(rng.uniform(0.12, 0.14)), _pair(rng.uniform(-0.02, 0.02, size=2)))
        for color, shape in zip(colors, shapes, strict=True)
    )
    present = 1 if rng.random() < 0.3 else 2
    cells = [int(cell) for cell in rng.choice(len(CELLS), size=present, replace=False)]
    states, drawn = [dict(enumerate(cells))], list[Event]()
    for _ in range(1 if rng.random() < 0.35 else 2):
        options = _possible(states[-1], drawn, sum(event.kind == "appears" for event in drawn) + present)
        kinds = sorted({event.kind for event, _ in options})
        weights = np.array([_WEIGHTS[kind] for kind in kinds])
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        event, after = _pick([option for option in options if option[0].kind == kind], rng)
        drawn.append(event)
        states.append(after)
    used = max(max(state) for state in states) + 1
    return _timed(seed, actors[:used], drawn, states, rng)


def render_clip(clip: EventClip, size: int = SIDE) -> NDArray[np.uint8]:
    """Return the frames of a clip, ``[8, size, size, 3]`` uint8; the same clip and size give the same pixels."""
    known: dict[object, NDArray[np.uint8]] = {}
    for cells, places in zip(clip.cells, clip.places, strict=True):
        if places not in known:
            drawn = []
            for actor, cell, place in zip(clip.actors, cells, places, strict=True):
                x, y = place or (_OUTSIDE, _OUTSIDE)
                drawn.append(SceneShape(actor.shape, actor.color, None, CELLS[cell or 0], x, y, actor.radius))
            known[places] = np.asarray(render(Scene(clip.seed, tuple(drawn)), size))
    return np.stack([known[places] for places in clip.places])


def _possible(state: dict[int, int], before: list[Event], known: int) -> list[tuple[Event, dict[int, int]]]:
    """Return every event that can come next, without its frame, and the cells after it; ``known`` shapes were seen so
    far.
    """
    busy = {actor for event in before for actor in event.actors}
    still = [actor for actor in state if actor not in busy]
    found = [(Event("swap", (a, b), 0), {**state, a: state[b], b: state[a]}) for a in still for b in still if a < b]
    if len(state) < MAX_SHAPES:
        free = [cell for cell in range(len(CELLS)) if cell not in state.values()]
        found += [(Event("appears", (known,), 0), {**state, known: cell}) for cell in free]
    for actor in still:
        if len(state) > 1:
            found.append((Event("leaves", (actor,), 0), {k: cell for k, cell in state.items() if k != actor}))
        for direction, (down, right) in DIRECTIONS.items():
            row, column = state[actor] // 3 + down, state[actor] % 3 + right
            while 0 <= row < 3 and 0 <= column < 3 and 3 * row + column not in state.values():
                found.append((Event("moves", (actor,), 0, direction), {**state, actor: 3 * row + column}))
                row, column = row + down, column + right
    return found


def _timed(
    seed: int, actors: tuple[Actor, ...], drawn: list[Event], states: list[dict[int, int]], rng: np.random.Generator
) -> EventClip:
    """Spread the events over the frames: every state is seen twice at least, and a move has a frame of its own."""
    moving = [event.kind == "moves" for event in drawn]
    spare = FRAMES - 2 * len(states) - sum(moving)
    lengths = 2 + rng.multinomial(spare, np.full(len(states), 1 / len(states)))
    cells, places, events = list[tuple[int | None, ...]](), list[tuple[tuple[float, float] | None, ...]](), []
    for number, (state, length) in enumerate(zip(states, lengths, strict=True)):
        here = _centers(state, actors)
        if number:
            event = drawn[number - 1]
            events.append(Event(event.kind, event.actors, len(cells), event.direction))
            if moving[number - 1]:
                before, last = states[number - 1], places[-1]
                cells.append(tuple(before.get(k) for k in range(len(actors))))
                places.append(tuple(_middle(a, b) for a, b in zip(last, here, strict=True)))
        cells += [tuple(state.get(k) for k in range(len(actors)))] * int(length)
        places += [here] * int(length)
    return EventClip(seed, actors, tuple(events), tuple(cells), tuple(places))


def _centers(state: dict[int, int], actors: tuple[Actor, ...]) -> tuple[tuple[float, float] | None, ...]:
    found: list[tuple[float, float] | None] = []
    for number, actor in enumerate(actors):
        cell = state.get(number)
        across, along = actor.offset
        found.append(None if cell is None else ((cell % 3 + 0.5) / 3 + across, (cell // 3 + 0.5) / 3 + along))
    return tuple(found)


def _middle(a: tuple[float, float] | None, b: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if a is None or b is None else ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)


def _pick(options: list[tuple[Event, dict[int, int]]], rng: np.random.Generator) -> tuple[Event, dict[int, int]]:
    return options[int(rng.integers(len(options)))]


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])
