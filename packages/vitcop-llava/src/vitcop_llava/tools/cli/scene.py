"""``vitcop scene``: draws a scene that the demo model knows, with what can be asked about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitcop_llava.tools.cli.errors import cannot_write, mistakes
from vitcop_llava.tools.cli.options import AsJson, Debug, Force, check_output, write_picture
from vitcop_llava.tools.cli.output import add_row, make_table, print_json, print_result

if TYPE_CHECKING:
    from vitcop_llava.tools.demo.questions import Question


def scene(
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=10**9,
            help="The number of the scene. The model was trained on seeds from 1000000 on.",
        ),
    ] = 0,
    clip: Annotated[
        bool,
        typer.Option("--clip", metavar="", help="Draw a video for the demo model of vitcop-video, as an MP4 file."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: scene-SEED.png, or with --clip .mp4."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw a scene or clip that the demo model knows, and print the questions about it with their answers."""
    suffix = ".mp4" if clip else ".png"
    path = out or Path(f"scene-{seed}{suffix}")
    check_output(path, force, kind="MP4" if clip else "PNG")
    questions = _draw_clip(seed, path, force) if clip else _draw_scene(seed, path, force)
    if as_json:
        asked = [{"kind": each.kind, "question": each.text, "answer": each.answer} for each in questions]
        print_json({"video" if clip else "picture": str(path), "seed": seed, "questions": asked})
        return
    table = make_table(("question", "answer"), title=f"{path}: scene {seed}")
    for each in questions:
        add_row(table, each.text, each.answer)
    print_result(table)


def _draw_scene(seed: int, path: Path, force: bool) -> Sequence[Question]:
    from vitcop_llava.tools.demo.questions import listing, questions_about
    from vitcop_llava.tools.demo.scenes import render, sample_scene

    drawn = sample_scene(seed)
    write_picture(render(drawn), path, force)
    return [*questions_about(drawn), listing(drawn)]


def _draw_clip(seed: int, path: Path, force: bool) -> Sequence[Question]:
    from vitcop_llava.tools.media.video_support import need_support

    try:
        with mistakes("--clip"):
            return need_support().write_demo(seed, path, overwrite=force)
    except OSError as error:
        raise cannot_write("--out", path, error) from error
