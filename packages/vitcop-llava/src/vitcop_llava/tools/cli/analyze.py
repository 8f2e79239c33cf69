"""``vitcop analyze``: does ViTCoP suit a model? The paper's figures on it, and a verdict."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcop_llava.tools.cli.analyze_inputs import (
    Prompts,
    check_folder,
    check_given,
    choose_prompts,
    parse_shares,
    read_answered,
)
from vitcop_llava.tools.cli.errors import cannot_write, mistakes
from vitcop_llava.tools.cli.media import open_images
from vitcop_llava.tools.cli.options import AsJson, Debug, Device, Dtype, Model
from vitcop_llava.tools.cli.output import add_row, make_table, print_json, print_result, progress
from vitcop_llava.tools.cli.running import Notes, describe, model_summary, open_model, prepare_inputs, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image
    from rich.table import Table

    from vitcop_llava.tools.analysis import Accuracy, Analysis, Verdict
    from vitcop_llava.tools.model.loading import Loaded

SHARES = "5,10,20,35,50,75"
DEMO_SCENES = 32

Questions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help='For Figure 2b: a JSON object a line, with "image" or "images", "question" and "answer".',
    ),
]
Shares = Annotated[
    str, typer.Option("--top-k", metavar="P,P,...", help="The percentages of the visual tokens that Figure 2b keeps.")
]
Scenes = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10**6,
        metavar="N",
        show_default=False,
        help=f"How many held-out scenes to show the demo model. Default: {DEMO_SCENES}.",
    ),
]
Folder = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder for the result.")]
ForceFolder = Annotated[bool, typer.Option("--force", metavar="", help="Write into a folder even if it is not empty.")]


def analyze(
    images: Annotated[list[Path] | None, typer.Argument(metavar="IMAGE", show_default=False)] = None,
    question: Annotated[
        str | None,
        typer.Option(help="The prompt beside each image. Default: a request to say what is in it.", show_default=False),
    ] = None,
    questions: Questions = None,
    scenes: Scenes = None,
    top_k: Shares = SHARES,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=10**6, help="How long an answer in Figure 2b may be, in tokens.")
    ] = 16,
    model: Model = None,
    out: Folder = Path("vitcop-analysis"),
    force: ForceFolder = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure whether ViTCoP suits a model: do its key norms stand for attention, and where?

    Run the unpruned model on each image, and write the paper's Figures 2a, 2b, 3a, 4 and 6 with their numbers, and a
    report with a verdict. Figure 2b needs questions with answers: those of --questions, or of the demo model's scenes.
    """
    check_folder(out, force)
    shares, paths, notes = parse_shares(top_k), images or [], Notes()
    asked = None if questions is None else read_answered(questions)
    check_given(paths, question, asked, scenes, model)
    for path in dict.fromkeys([*paths, *(image for line in asked or () for image in line.images)]):
        open_images([path])  # one that cannot be read is known before the model is loaded, and none is held
    loaded = open_model(model, device, dtype, notes)
    side = loaded.model.config.vision_config.image_size if loaded.knows_scenes else None
    prompts = choose_prompts(side, paths, question, asked, scenes or DEMO_SCENES)
    with quiet(notes):
        analysis = _observe(loaded, prompts, notes)
        if prompts.asked:
            analysis = analysis.with_accuracy(_ask(loaded, prompts, shares, max_new_tokens))
    given: dict[str, object] = {
        "--question": question,
        "--questions": questions,
        "--scenes": prompts.scenes,
        "--top-k": top_k if prompts.asked else None,
        "--max-new-tokens": max_new_tokens if prompts.asked else None,
        "--model": model,
        "--dtype": None if dtype == "auto" else dtype,
    }
    about = _about(loaded, prompts, shlex.join(_command(paths, given)))
    verdict, files = _write(loaded, analysis, about, prompts, out)
    if as_json:
        from vitcop_llava.tools.analysis.report import claims

        rows = [{"claim": what, "paper": paper, "here": here} for what, paper, here in claims(analysis, about)]
        where = {"folder": str(out), "files": sorted(files), "model": about["model"], "prompts": len(prompts.pictures)}
        print_json({**where, "claims": rows, "verdict": verdict.as_json(), "notes": notes.found})
        return
    print_result(f"{describe(loaded)}; {len(prompts.pictures)} prompts\n\n{verdict.text}\n")
    print_result(_claims_table(analysis, about))
    print_result(f"{out}: {', '.join(sorted(files))}")
    notes.print()


def _observe(loaded: Loaded, prompts: Prompts, notes: Notes) -> Analysis:
    import sys

    from tqdm import tqdm

    from vitcop_llava.tools.analysis import analyze as analyze_model

    def inputs() -> Iterator[Any]:
        shown = tqdm(prompts.pictures, desc="prompts", file=sys.stderr, disable=not sys.stderr.isatty())
        for open_pictures, text in shown:
            yield prepare_inputs(loaded, open_pictures(), text, notes)

    with mistakes():
        return analyze_model(loaded.model, inputs())


def _ask(loaded: Loaded, prompts: Prompts, shares: Any, max_new_tokens: int) -> Accuracy:
    from vitcop_llava.tools.analysis import measure_accuracy

    with mistakes():
        return measure_accuracy(loaded, prompts.asked, shares, max_new_tokens)


def _about(loaded: Loaded, prompts: Prompts, command: str) -> dict[str, Any]:
    from vitcop_llava.tools.model.environment import environment

    return {
        "command": command,
        "environment": environment(),
        "model": model_summary(loaded),
        "question": prompts.question,
        "left_out": prompts.left_out,
    }


def _command(paths: list[Path], given: dict[str, object]) -> list[str]:
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    return ["vitcop", "analyze", *map(str, paths), *options]


def _write(
    loaded: Loaded, analysis: Analysis, about: dict[str, Any], prompts: Prompts, out: Path
) -> tuple[Verdict, list[str]]:
    from vitcop_llava.tools.analysis import judge
    from vitcop_llava.tools.analysis.report import render_files, write_files

    source = about["model"]["source"]
    verdict, name = judge(analysis), "the demo model" if source == "demo" else Path(source).name
    open_pictures, _ = prompts.pictures[0]
    with progress("drawing"):
        files = render_files(analysis, verdict, about, name, _view(loaded, open_pictures()[0]))
    try:
        write_files(files, out)
    except OSError as error:
        raise cannot_write("--out", Path(error.filename or out), error) from error
    return verdict, list(files)


def _view(loaded: Loaded, picture: Image.Image) -> Image.Image:
    """Return the picture as Figure 6 shows it: what the model sees of it in its first unit."""
    from vitcop_llava.tools.pictures.survivors import as_seen

    in_own_size = loaded.parts.anyres is not None or loaded.parts.squares is not None
    return picture if in_own_size else as_seen(loaded.processor.image_processor, picture)


def _claims_table(analysis: Analysis, about: dict[str, Any]) -> Table:
    from vitcop_llava.tools.analysis.report import claims

    table = make_table(("", "paper, LLaVA-1.5-7B", "here"))
    for row in claims(analysis, about):
        add_row(table, *row)
    return table
