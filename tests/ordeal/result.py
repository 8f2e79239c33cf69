"""What an ordeal came to: sums for each kind, from a journal that a stop leaves whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ordeal.crew import Outcome
from vitcop_video.machine import environment


@dataclass
class Tried:
    """Inputs of one kind with numbers from ``first`` on, and what they came to.

    Attributes:
        slowest: seconds of the one that took longest.
        bytes: of memory, of the one that took most.
        faults: numbers, with what happened.
    """

    kind: str
    first: int
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    bytes: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.tried += 1
        self.accepted += outcome.outcome == "accepted"
        self.refused += outcome.outcome == "refused"
        self.seconds += outcome.seconds
        self.slowest = max(self.slowest, outcome.seconds)
        self.bytes = max(self.bytes, outcome.bytes)
        if outcome.outcome == "fault":
            self.faults.append((outcome.number, outcome.message))


@dataclass(frozen=True)
class Chunk:
    """Numbers of a kind that one process tries in a row."""

    kind: str
    first: int
    count: int


def chunks_of(counts: dict[str, int], size: int) -> Iterator[Chunk]:
    for kind, count in counts.items():
        for first in range(0, count, size):
            yield Chunk(kind, first, min(size, count - first))


def summed(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a kind, of what was tried in chunks."""
    rows: dict[str, Tried] = {}
    for part in parts:
        own, row = Tried(**part), rows.setdefault(part["kind"], Tried(part["kind"], 0))
        for name in ("tried", "accepted", "refused", "seconds"):
            setattr(row, name, getattr(row, name) + getattr(own, name))
        row.slowest, row.bytes = max(row.slowest, own.slowest), max(row.bytes, own.bytes)
        row.faults += own.faults
    return [asdict(row) for row in rows.values()]


def stored(command: str, seed: int, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result as it is published."""
    parts = {name: [line[name] for line in lines if name in line] for name in ("inputs", "requests", "kills")}
    return {
        "command": command,
        "environment": environment(),
        "seed": seed,
        "inputs": summed(parts["inputs"]),
        "requests": parts["requests"],
        "kills": [row for rows in parts["kills"] for row in rows],
    }


def faults_of(result: dict[str, Any]) -> list[str]:
    """What must not have happened, in words."""
    found = [f"{row['kind']} {number}: {message}" for row in result["inputs"] for number, message in row["faults"]]
    found += [f"requests: {fault}" for part in result["requests"] for fault in part["faults"]]
    return found + [f"kills: {row['name']}: {row['fault']}" for row in result["kills"] if row["fault"]]


def kinds_of(messages: Iterable[str]) -> Counter[str]:
    """How often each fault came up, by its first words."""
    return Counter(" ".join(message.split()[:6]) for message in messages)
