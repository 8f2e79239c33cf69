"""Tries whatever a user can hand in, damaged in every way, requests from many threads, and kills: ``python -m ordeal``.

What was tried is in a journal until all is done: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from tqdm import tqdm

from ordeal import kills
from ordeal.crew import Hand
from ordeal.kinds import SHARES, SHORT, preparation
from ordeal.result import Chunk, Tried, chunks_of, faults_of, stored
from vitcop_core.files import write_text
from vitcop_core.journal import Journal, lines_of, partial_path

CHUNK = 100
REQUESTS, SHORT_REQUESTS = 10_000, 300
KILLS, SHORT_KILLS = 50, 0
MOST_JOURNAL = 2**28
SEED = 19


class StoppedError(Exception):
    """Somebody asked for an end, and the journal holds what was done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 1 where anything happened that must not."""
    options = parse(arguments)
    if options.replay:
        return replay(options.replay[0], int(options.replay[1]), options.seed)
    counts = SHORT if options.short else {name: options.inputs * share // 1000 for name, share in SHARES.items()}
    wanted = (
        {"requests": SHORT_REQUESTS, "kills": SHORT_KILLS} if options.short else {"requests": REQUESTS, "kills": KILLS}
    )
    with TemporaryDirectory() as folder:
        out = Path(folder) / "ordeal.json" if options.short else options.out
        try:
            lines = run(out, options.seed, counts, wanted, options.workers)
        except (KeyboardInterrupt, StoppedError):
            print(f"stopped; what was tried is in {partial_path(out)}, and the same command goes on", file=sys.stderr)
            return 130
        given = "" if options.inputs == 100_000 else f" -- --inputs {options.inputs}"
        result = stored(f"python3 -m nox -s ordeal{given}", options.seed, lines)
        write_text(out, json.dumps(result, indent=1) + "\n")
        partial_path(out).unlink()
    print(described(result))
    return 1 if faults_of(result) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ordeal", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a form that takes a minute and stores nothing")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs of all kinds")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many processes try inputs")
    parser.add_argument("--out", type=Path, default=kills.ROOT / "docs" / "benchmarks" / "ordeal.json")
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "NUMBER"), help="try one input again, here")
    return parser.parse_args(arguments)


def run(out: Path, seed: int, counts: dict[str, int], wanted: dict[str, int], workers: int) -> list[dict[str, Any]]:
    """Does what the journal beside ``out`` does not have yet; returns its lines."""
    head = {"seed": seed, "inputs": counts, **wanted}
    lines: list[dict[str, Any]] = [head]
    with suppress(FileNotFoundError):
        found = lines_of(partial_path(out), MOST_JOURNAL)
        if found and found[0] != head:
            raise SystemExit(f"{partial_path(out)} is of another run, {found[0]}; remove it or give the same options")
        lines = found or lines
    with Journal(out, lines) as journal:

        def add(**part: Any) -> None:
            lines.append(part)
            journal.add(part)

        done = {(line["inputs"]["kind"], line["inputs"]["first"]) for line in lines[1:] if "inputs" in line}
        left = [each for each in chunks_of(counts, CHUNK) if (each.kind, each.first) not in done]
        with stopping() as stop:
            for tried in inputs(left, seed, workers, sum(counts.values()), stop):
                add(inputs=asdict(tried))
            if stop.is_set():
                raise StoppedError
        if not any("requests" in line for line in lines[1:]):
            add(requests=requests(wanted["requests"], seed))
        if wanted["kills"] and not any("kills" in line for line in lines[1:]):
            print(f"kills: {wanted['kills']} of each command that writes", file=sys.stderr)
            add(kills=kills.run(wanted["kills"]))
    return lines[1:]


def inputs(chunks: list[Chunk], seed: int, workers: int, total: int, stop: Event) -> Iterator[Tried]:
    """Tries inputs in several processes until all are tried or ``stop`` is set, and shows how it goes."""
    hands = SimpleQueue[Hand]()
    for _ in range(workers):
        hands.put(Hand(seed))
    done = total - sum(chunk.count for chunk in chunks)
    with tqdm(total=total, initial=done, desc="inputs", unit="input", mininterval=1, smoothing=0.05) as bar:

        def work(chunk: Chunk) -> Tried | None:
            hand, tried = hands.get(), Tried(chunk.kind, chunk.first)
            try:
                for outcome in hand.run(chunk.kind, range(chunk.first, chunk.first + chunk.count)):
                    tried.add(outcome)
                    bar.update()
                    if outcome.outcome == "fault":
                        bar.write(f"{chunk.kind} {outcome.number}: {outcome.message}", file=sys.stderr)
                    if stop.is_set():
                        return None  # what is half done is tried again
            finally:
                hands.put(hand)
            return tried

        with ThreadPoolExecutor(workers) as pool:
            waiting: set[Future[Tried | None]] = set()
            for chunk in chunks:
                if stop.is_set():
                    break
                waiting.add(pool.submit(work, chunk))
                while len(waiting) >= (workers if chunk is not chunks[-1] else 1):
                    # A signal that another thread got is heard when this one wakes.
                    finished, waiting = wait(waiting, 0.2, FIRST_COMPLETED)
                    yield from whole(finished)
            yield from whole(wait(waiting).done)
    while not hands.empty():
        hands.get().close()


def whole(finished: set[Future[Tried | None]]) -> Iterator[Tried]:
    """The chunks of which every input was tried."""
    for each in finished:
        tried = each.result()
        if tried is not None:
            yield tried


@contextmanager
def stopping() -> Iterator[Event]:
    """Makes a request to stop, by Ctrl-C or SIGTERM, an event: what runs ends where nothing is lost."""
    stop = Event()
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def requests(count: int, seed: int) -> dict[str, Any]:
    """Runs the requests in a process of their own, whose memory is theirs alone."""
    command = [sys.executable, "-W", "ignore", "-m", "ordeal.requests", str(count), str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the requests ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def replay(kind: str, number: int, seed: int) -> int:
    """Tries one input in this process, with whatever it prints and raises."""
    from ordeal.trials import RefusedError, random_of

    with TemporaryDirectory() as folder:
        os.chdir(folder)
        trial = preparation(kind)(Path(folder))
        try:
            trial(random_of(seed, kind, number))
        except RefusedError as refusal:
            print(f"refused: {refusal.__cause__ or 'with an exit code'}")
        else:
            print("accepted")
        finally:
            os.chdir("/")
    return 0


def described(result: dict[str, Any]) -> str:
    """What was tried, as lines."""
    lines = [
        f"{row['kind']}: {row['tried']} tried, {row['accepted']} accepted, {row['refused']} refused, "
        f"{len(row['faults'])} faults, {row['seconds']:.0f} s, {row['slowest']:.1f} s the slowest"
        for row in result["inputs"]
    ]
    lines += [
        f"requests: {row['requests']} from {row['threads']} threads, {len(row['faults'])} faults, "
        f"{(row['after'] - row['before']) / 2**20:+.1f} MiB"
        for row in result["requests"]
    ]
    lines += [
        f"{row['name']}: killed {row['killed']} times{', ' + row['fault'] if row['fault'] else ''}"
        for row in result["kills"]
    ]
    return "\n".join([*lines, *(f"FAULT: {fault}" for fault in faults_of(result))])


if __name__ == "__main__":
    raise SystemExit(main())
