"""Requests of every kind from four threads on one pruned model: ``python -m ordeal.requests COUNT SEED``.

Every answer has to be that of the same request alone, and memory must not grow. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from random import Random
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from ordeal.models import pictures, prompt, tiny_model
from vitcop_llava import FeatureScaleWarning, ImagePrefix, ViTCoP, encode_image, prune
from vitcop_video.soak import reading

THREADS = 4
VARIANTS = 6
"""Of each kind of request."""

WAITING = 500
MOST_GROWTH = 8 * 2**20
METHOD = ViTCoP(retained_tokens=9, cutoff_distance=3.0)

Answer = tuple[Any, ...]
"""Tensors, or the words of an error: what is compared."""


@dataclass(frozen=True)
class Result:
    """What came of the requests: how many of each kind, which differed, and bytes of memory after a tenth and at the
    end.
    """

    requests: int
    threads: int
    seed: int
    kinds: dict[str, int]
    faults: list[str]
    before: int
    after: int
    seconds: float


class CancelledError(Exception):
    """Whoever asked wants no answer any more."""


class Stops(StoppingCriteria):
    """Ends an answer after some tokens: as if it were whole, or with an error."""

    def __init__(self, tokens: int, *, raises: bool) -> None:
        self._left, self._raises = tokens, raises

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self._left -= 1
        if self._left <= 0 and self._raises:
            raise CancelledError
        return torch.full((len(input_ids),), self._left <= 0)


def batch(rows: list[Tensor]) -> dict[str, Tensor]:
    """Prompts of one row each, padded on the left."""
    longest = max(row.shape[1] for row in rows)

    def padded(row: Tensor) -> Tensor:
        return functional.pad(row, (longest - row.shape[1], 0))

    return {
        "input_ids": torch.cat([*map(padded, rows)]),
        "attention_mask": torch.cat([padded(torch.ones_like(row)) for row in rows]),
    }


def forward(model: Any, seed: int) -> Answer:
    rows = [prompt(3 + seed % 4, "image", 4, seed=seed), prompt(2, "image", 7, seed=seed + 1)][: 1 + seed % 2]
    return (model(**batch(rows), pixel_values=pictures(len(rows), seed)).logits,)


def generation(model: Any, seed: int, **how: Any) -> Answer:
    parts: list[list[int | str]] = [[3, "image", 5], [2, "image", 3, "image", 4], [6]]
    rows = [prompt(*parts[(seed + number) % 3], seed=seed) for number in range(1 + seed % 3)]
    images = sum(row.shape[1] // 36 for row in rows)
    given = batch(rows) | ({"pixel_values": pictures(images, seed)} if images else {})
    return (model.generate(**given, max_new_tokens=4, do_sample=False, **how),)


def stopped(model: Any, seed: int) -> Answer:
    return generation(model, seed, stopping_criteria=StoppingCriteriaList([Stops(2, raises=False)]))


def cancelled(model: Any, seed: int) -> Answer:
    try:
        return generation(model, seed, stopping_criteria=StoppingCriteriaList([Stops(1 + seed % 3, raises=True)]))
    except CancelledError:
        return ("cancelled",)


def wrong(model: Any, seed: int) -> Answer:
    """An image too few or too many: refused."""
    try:
        return (model(**batch([prompt(3, "image", 4, seed=seed)]), pixel_values=pictures(2 * (seed % 2), seed)).logits,)
    except (ValueError, RuntimeError) as error:
        return (str(error),)


def conversation(model: Any, seed: int) -> Answer:
    """Two turns in one cache, the second of text or with an image of its own."""
    cache, ids = DynamicCache(config=model.config.text_config), prompt(3, "image", 5, seed=seed)
    first = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pictures(1, seed),
        past_key_values=cache,
        max_new_tokens=3,
        do_sample=False,
    )
    parts: list[int | str] = [4] if seed % 2 else [2, "image", 3]
    ids = torch.cat([first, prompt(*parts, seed=seed + 7)[:, 1:]], 1)
    more = {} if seed % 2 else {"pixel_values": pictures(1, seed + 1)}
    second = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=3,
        do_sample=False,
        **more,
    )
    return first, second


def steps(model: Any, seed: int) -> Iterator[Tensor]:
    """Tokens one by one, for as long as somebody asks."""
    cache, ids = DynamicCache(config=model.config.text_config), prompt(3, "image", 5, seed=seed)
    logits = model(input_ids=ids, pixel_values=pictures(1, seed), past_key_values=cache).logits
    while True:
        token = logits[:, -1:].argmax(-1)
        yield token
        logits = model(input_ids=token, past_key_values=cache).logits


def closed(model: Any, seed: int) -> Answer:
    """A generator of tokens that is closed before its end."""
    tokens: Any = steps(model, seed)
    found = (*islice(tokens, 1 + seed % 3),)
    tokens.close()
    return found


def question(model: Any, seed: int, prefix: ImagePrefix) -> Answer:
    """Questions about an image that was encoded once."""
    asked = [prompt(3 + seed % 3, seed=seed)[0, 1:].tolist(), [5, 6]][: 1 + seed % 2]
    return (model.generate(**prefix.inputs(asked), max_new_tokens=3, do_sample=False),)


def kinds_of_requests(prefix: ImagePrefix) -> dict[str, Callable[[Any, int], Answer]]:
    return {
        "forward": forward,
        "generate": generation,
        "beams": partial(generation, num_beams=2),
        "stopped": stopped,
        "cancelled": cancelled,
        "wrong": wrong,
        "conversation": conversation,
        "closed": closed,
        "question": partial(question, prefix=prefix),
    }


def is_same(one: Answer, other: Answer) -> bool:
    if len(one) != len(other):
        return False
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(one, other, strict=True)
    )


def run(count: int, seed: int) -> Result:
    """Runs so many requests; those that went before are no part of the memory that is compared."""
    warnings.simplefilter("ignore", FeatureScaleWarning)
    torch.set_num_threads(1)
    model, start = tiny_model(), time.monotonic()
    with torch.inference_mode():
        prefix = encode_image(model, prompt(3, "image", 2), pictures(), method=METHOD)
    kinds = kinds_of_requests(prefix)
    hooks = hooks_of(model)
    faults, lock, done = list[str](), Lock(), Counter[str]()
    with prune(model, METHOD), tqdm(total=count, desc="requests", file=sys.stderr, mininterval=2) as bar:
        with torch.inference_mode():
            alone = {(name, variant): ask(model, variant) for name, ask in kinds.items() for variant in range(VARIANTS)}
        keys = [*alone]

        def serve(number: int) -> None:
            name, variant = Random(f"{seed}/requests/{number}").choice(keys)
            try:
                with torch.inference_mode():
                    fault = None if is_same(kinds[name](model, variant), alone[name, variant]) else "another answer"
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"[:300]
            with lock:
                done[name] += 1
                bar.update()
                if fault is not None:
                    faults.append(f"{name} {variant}, request {number}: {fault}")

        with ThreadPoolExecutor(THREADS) as pool:

            def serve_all(numbers: range) -> int:
                # Those that wait take memory too: they are few at a time.
                for first in numbers[::WAITING]:
                    list(pool.map(serve, range(first, min(first + WAITING, numbers.stop))))
                return reading().resident

            before = serve_all(range(count // 10))
            after = serve_all(range(count // 10, count))
    if hooks_of(model) != hooks:
        faults.append("hooks are left on the model")
    if after - before > MOST_GROWTH:
        faults.append(f"memory grew by {(after - before) / 2**20:.0f} MiB")
    return Result(count, THREADS, seed, dict(done), faults, before, after, time.monotonic() - start)


def hooks_of(model: Any) -> int:
    """How many hooks are on a model, and methods of its modules that are not their classes'."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


if __name__ == "__main__":
    print(json.dumps(asdict(run(int(sys.argv[1]), int(sys.argv[2])))))
