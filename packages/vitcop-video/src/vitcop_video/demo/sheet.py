"""A demo clip on one sheet, its frames above and its questions below: ``python -m vitcop_video.demo.sheet``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitcop_core.files import write_whole
from vitcop_llava.tools.pictures.panels import INK, PAPER
from vitcop_llava.tools.pictures.survivors import FAINT
from vitcop_video.demo.events import FRAMES, render_clip, sample_clip
from vitcop_video.demo.questions import listing, questions_about

SIDE, GAP, LINE = 168, 8, 24
COLUMNS = 2


def draw_sheet(seed: int) -> Image.Image:
    """Return the eight frames of the clip of ``seed`` in a row, and every question about it with its answer."""
    clip = sample_clip(seed)
    asked = questions_about(clip)
    rows = -(-len(asked) // COLUMNS)
    width, top = FRAMES * (SIDE + GAP) + GAP, 2 * GAP + SIDE
    sheet = Image.new("RGB", (width, top + LINE * (rows + 1) + 2 * GAP), PAPER)
    for number, frame in enumerate(np.asarray(render_clip(clip, SIDE))):
        sheet.paste(Image.fromarray(frame), (GAP + number * (SIDE + GAP), GAP))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    lines = [(question.text, question.answer) for question in asked]
    places = [(GAP + k // rows * (width // COLUMNS), top + k % rows * LINE) for k in range(len(lines))]
    told = listing(clip)
    for (text, answer), (x, y) in zip(
        [*lines, (told.text, told.answer)], [*places, (GAP, top + rows * LINE)], strict=True
    ):
        draw.text((x, y), text, fill=FAINT, font=font)
        draw.text((x + draw.textlength(text + "  ", font=font), y), answer, fill=INK, font=font)
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Draw and stores."""
    options = argparse.ArgumentParser(prog="python -m vitcop_video.demo.sheet", description=__doc__)
    options.add_argument("--seed", type=int, default=0, help="which clip; training has those from 1000000 on")
    options.add_argument("--out", type=Path, required=True, help="PNG file")
    args = options.parse_args(arguments)
    with write_whole(args.out) as stream:
        draw_sheet(args.seed).save(stream, format="PNG")


if __name__ == "__main__":
    main()
