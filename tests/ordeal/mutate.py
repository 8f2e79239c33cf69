"""Damage: of bytes, of JSON and of texts; and values that nobody expects."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from copy import deepcopy
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_WIDTHS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")


def mutated(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """A damaged copy: one to four of these happen to it, half of the time near its beginning.

    Args:
        data: what is damaged.
        random: decides.
        other: what pieces may come from.
    """
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        _damage(found, random, other)
    return bytes(found)


def _damage(data: bytearray, random: Random, other: bytes) -> None:
    size = len(data)
    if not size:
        data += random.randbytes(random.randrange(1, 100))
        return
    place = random.randrange(min(size, 200)) if random.random() < 0.5 else random.randrange(size)
    length = min(size - place, random.choice((1, 2, 4, 8, 16, 64, 300, size // 4 + 1)))
    what = random.randrange(10)
    if what < 2:
        for _ in range(random.choice((1, 1, 2, 8, 50))):
            at = random.randrange(size) if what else min(size - 1, place + random.randrange(8))
            data[at] ^= 1 << random.randrange(8)
    elif what == 2:
        data[place : place + length] = random.randbytes(length)
    elif what == 3:
        width = random.choice(_WIDTHS)
        count = struct.calcsize(width)
        number = random.choice(NUMBERS) + random.choice((0, 0, 1, -1))
        data[place : place + count] = struct.pack(width, number % 256**count)
    elif what == 4:
        del data[place:]
    elif what == 5:
        del data[place : place + length]
    elif what == 6:
        data[place:place] = data[place : place + length] * random.choice((1, 1, 2, 20))
    elif what == 7:
        data[place : place + length] = bytes([random.choice((0, 0, 255))]) * length
    elif what == 8 and other:
        at = random.randrange(len(other))
        data[place : place + length] = other[at : at + length]
    else:
        data += random.randbytes(random.choice((1, 20, 5000)))


ODD_TEXTS = (
    *("", " ", "\0", "a\0b", "nan", "inf", "-1", "0", "1e999", "\ud800", "\u202e", "é" * 300, "x" * 5000),
    *("../../etc/passwd", "/dev/zero", "/proc/self/mem", "%s%n", "${HOME}", "'; --", "\x1b[2J", "\r\n", "None", "１２"),
)

ODD_JSON: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, 1e-320),
    *([], {}, [[]], [None], {"": {}}, [1, 2], [1] * 3000, "x", *ODD_TEXTS),
)


def mutated_json(value: Any, random: Random) -> Any:
    """A copy of JSON content with one to three values or names that are others, gone, or too many."""
    found = {"": deepcopy(value)}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if not (places := _places(found)):
            break
        parent, key = random.choice(places)
        _change(parent, key, random)
    return found.get("")


def _places(value: Any) -> list[tuple[Any, Any]]:
    places: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        places.append((value, key))
        places += _places(value[key])
    return places[:5000]


def _change(parent: Any, key: Any, random: Random) -> None:
    value, what = parent[key], random.randrange(9)
    if what < 4:
        parent[key] = deepcopy(random.choice(ODD_JSON))
    elif what == 4:
        del parent[key]
    elif what == 5 and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = random.choice(
            (value + 1, value - 1, -value, 2 * value, value / 2, str(value), 3 * value, [value])
        )
    elif what == 6:
        other_parent, other = random.choice(_places({"": parent}))
        parent[key] = deepcopy(other_parent[other])
    elif what == 7:
        nested: Any = value
        for _ in range(random.choice((1, 3, 60))):
            nested = random.choice(([nested], {"a": nested}))
        parent[key] = nested
    elif isinstance(parent, dict):
        parent[random.choice((f"{key}s", str(key).upper(), "model_type", random.choice(ODD_TEXTS)))] = value
    elif isinstance(value, str):
        parent[key] = mutated_text(value, random)


def as_json(value: Any, random: Random) -> bytes:
    """JSON content as a file; at times damaged as bytes too, or with what Python's writer alone allows."""
    data = json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutated(data, random) if random.random() < 0.15 else data


_CHARACTERS = "()[]{}=,.'\"\\/:;-+*%#@ \t\n0123456789eE_xXnaNé\0\u202e\U0001f600１"


def mutated_text(text: str, random: Random, words: Sequence[str] = ()) -> str:
    """A damaged text: characters that are others, gone, or more; words in place of parts."""
    found = list(text)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        place, what = random.randrange(len(found) + 1), random.randrange(6)
        if what == 0:
            found[place : place + 1] = [random.choice(_CHARACTERS)]
        elif what == 1:
            found[place:place] = [random.choice(_CHARACTERS)] * random.choice((1, 1, 1, 2, 40))
        elif what == 2:
            del found[place : place + random.choice((1, 1, 2, 10))]
        elif what == 3:
            found[place:place] = found[place : place + random.randrange(1, 12)]
        elif what == 4 and words:
            found[place : place + random.randrange(6)] = random.choice(words)
        else:
            found[place:place] = random.choice(ODD_TEXTS[:15])
    return "".join(found)
