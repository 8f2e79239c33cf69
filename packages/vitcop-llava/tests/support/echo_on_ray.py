"""Asks what its arguments say on a Ray cluster of its own, with `echo` in the place of a model, and prints what comes.

Then it asks an `echo` that cannot be made, and prints what that raises.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

from echo import echo

from vitcop_llava.tools.batch import Row
from vitcop_llava.tools.batch.on_ray import answer_on_ray


def ask(device: str, questions: list[str]) -> list[Any]:
    rows = ((number, Row(("x.png",), question)) for number, question in enumerate(questions))
    return [*answer_on_ray("local", echo, device, rows, workers=1, sizes=(2, 8))]


def main() -> None:
    for outcomes in ask("cpu", sys.argv[1:]):
        print(json.dumps({number: asdict(outcome) for number, outcome in outcomes.items()}))
    try:
        ask("none", ["a"])
    except ValueError as error:
        print(json.dumps({"raised": str(error)}))


if __name__ == "__main__":
    main()
