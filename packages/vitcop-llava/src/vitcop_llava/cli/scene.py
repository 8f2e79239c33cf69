"""``vitcop scene``: draws a scene that the demo model knows, with what can be asked about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitcop_llava.cli.options import AsJson, Debug, Force, check_output, write_picture
from vitcop_llava.cli.output import add_row, make_table, print_json, print_result


def scene(
    seed: Annotated[int, typer.Option(min=0, help="Which scene; the model was trained on seeds from 1000000 on.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "--output", "-o", metavar="FILE.png", help="Default: scene-SEED.png.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw a scene that the demo model knows, and print the questions about it with their answers."""
    path = out or Path(f"scene-{seed}.png")
    check_output(path, force)
    from vitcop_llava.demo.questions import listing, questions_about
    from vitcop_llava.demo.scenes import render, sample_scene

    drawn = sample_scene(seed)
    write_picture(render(drawn), path, force)
    questions = [*questions_about(drawn), listing(drawn)]
    if as_json:
        asked = [{"kind": each.kind, "question": each.text, "answer": each.answer} for each in questions]
        print_json({"picture": str(path), "seed": seed, "questions": asked})
        return
    table = make_table(("question", "answer"), title=f"{path}: scene {seed}")
    for each in questions:
        add_row(table, each.text, each.answer)
    print_result(table)
