"""Asks what its arguments say on a Ray cluster of its own, with `echo` in the place of a model; prints what comes."""

import json
import sys
from dataclasses import asdict

from echo import echo

from vitcop_llava.tools.batch import Row
from vitcop_llava.tools.batch.on_ray import answer_on_ray


def main(device: str, *questions: str) -> None:
    rows = ((number, Row(("x.png",), question)) for number, question in enumerate(questions))
    try:
        for outcomes in answer_on_ray("local", echo, device, rows, workers=1, sizes=(2, 8)):
            print(json.dumps({number: asdict(outcome) for number, outcome in outcomes.items()}))
    except ValueError as error:
        print(json.dumps({"raised": str(error)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
