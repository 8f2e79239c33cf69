"""``vitcop show``: a picture of the image, or of a video's frames, and of what survives each cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcop_llava.tools.cli.errors import UserError
from vitcop_llava.tools.cli.media import (
    End,
    Fps,
    Frames,
    Indices,
    KeyFrames,
    Reader,
    Start,
    TimeLimit,
    clip_fields,
    clips_of,
    describe_clip,
    has_video,
    open_media,
    parse_sampling,
)
from vitcop_llava.tools.cli.methods import MethodName, parse_method
from vitcop_llava.tools.cli.options import (
    AsJson,
    Debug,
    Device,
    Dtype,
    Force,
    Model,
    Retain,
    check_output,
    parse_budget,
    write_picture,
)
from vitcop_llava.tools.cli.output import add_row, make_table, print_json, print_result, progress
from vitcop_llava.tools.cli.running import (
    Notes,
    budget_mistakes,
    describe,
    model_summary,
    open_model,
    prepare_inputs,
    quiet,
    start_pruning,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from vitcop_core import Method
    from vitcop_llava.report import Survivors
    from vitcop_llava.tools.cli.media import Medium
    from vitcop_llava.tools.model.budget import Budget
    from vitcop_llava.tools.model.loading import Loaded

MAX_NEW_TOKENS = 32


def show(
    image: Annotated[Path, typer.Argument(metavar="IMAGE|VIDEO", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.png", help="Default: IMAGE-vitcop.png in this folder."),
    ] = None,
    force: Force = False,
    model: Model = None,
    retain: Retain = None,
    method: MethodName = "vitcop",
    frames: Frames = None,
    fps: Fps = None,
    indices: Indices = None,
    key_frames: KeyFrames = False,
    start: Start = None,
    end: End = None,
    reader: Reader = "auto",
    time_limit: TimeLimit = 10.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw which visual tokens of an image or video survive each stage; with a QUESTION also the answer."""
    budget = parse_budget(retain)
    path = out or Path(f"{image.stem}-vitcop.png")
    check_output(path, force, apart_from=(image,))
    sampling = parse_sampling(frames, fps, indices, key_frames, start, end, reader, time_limit)
    notes = Notes()
    media = open_media([image], sampling, notes.add)
    chosen = parse_method(method, budget)  # imports torch, so after what is known without it
    loaded = open_model(model, device, dtype, notes, for_video=has_video([image]))
    with quiet(notes):
        inputs = prepare_inputs(loaded, media, question, notes)
        answer, survivors = _run(loaded, inputs, chosen, budget, MAX_NEW_TOKENS if question else 1)
        said = f"{question}  {answer}" if question else ""
        write_picture(_draw(loaded, media[0], inputs, survivors, said), path, force)
    if as_json:
        settings = {"method": method, "retain": str(budget), "model": model_summary(loaded)}
        asked: dict[str, Any] = {"question": question or None, "answer": answer if question else None}
        if clips := clips_of(media):
            asked["clips"] = [clip_fields(clip) for clip in clips]
        print_json({"picture": str(path), **asked, **settings, **_as_json(survivors), "notes": notes.found})
        return
    print_result(f"{path}: {describe(loaded)}; --retain {budget}")
    for clip in clips_of(media):
        print_result(describe_clip(clip))
    if question:
        print_result(said)
    print_result(_as_table(survivors))
    notes.print()


def _run(loaded: Loaded, inputs: Any, method: Method, budget: Budget, max_new_tokens: int) -> tuple[str, Survivors]:
    from vitcop_llava.tools.model.answer import generate

    with budget_mistakes(budget), start_pruning(loaded, method, budget) as pruner, progress("running the model"):
        answer = generate(loaded, inputs, max_new_tokens)
        if not pruner.report.pruned:
            raise UserError(f"--retain must leave something out for there to be a picture, got {budget}")
        return answer.text, pruner.survivors()


def _draw(loaded: Loaded, image: Medium, inputs: Any, survivors: Survivors, caption: str) -> Image:
    from PIL.Image import fromarray

    from vitcop_llava.families.grids import GRIDS
    from vitcop_llava.tools.media.video_support import Clip
    from vitcop_llava.tools.pictures.contact_sheet import contact_sheet
    from vitcop_llava.tools.pictures.survivors import (
        as_seen,
        resized,
        squares_picture,
        survival_picture,
        tiled_picture,
    )

    if isinstance(image, Clip):
        video = loaded.parts.video
        assert video is not None  # `prepare` refuses clips otherwise
        frames = [fromarray(frame) for frame in image.frames]
        if video.pool is None:  # it takes frames as they are, and makes a grid of tokens of each
            views = [resized(frame, video.grid) for frame in frames]
        else:
            views = [as_seen(loaded.processor.frame_processor, frame) for frame in frames]
        return contact_sheet(views, image.seconds.tolist(), survivors, video.grid, caption)
    if loaded.parts.squares is not None:
        ((_, rows, columns),) = inputs[GRIDS["image"]].tolist()
        return squares_picture(image, survivors, loaded.parts.squares.image(rows, columns).grid, caption)
    if loaded.parts.anyres is not None:
        return tiled_picture(image, survivors, loaded.parts.anyres.tile(image.height, image.width), caption)
    view = as_seen(loaded.processor.image_processor, image)
    return survival_picture(view, survivors, loaded.parts.grid, caption)


def _as_table(survivors: Survivors) -> Table:
    table = make_table(("", "visual tokens", "of them merged"))
    add_row(table, "before", str(survivors.patches), "")
    for stage in survivors.stages:
        where = "before the language model" if stage.layer is None else f"before layer {stage.layer}"
        add_row(table, f"after {stage.name}, {where}", str(len(stage.patches)), str(int(stage.merged.sum())))
    return table


def _as_json(survivors: Survivors) -> dict[str, Any]:
    stages = [
        {
            "name": stage.name,
            "layer": stage.layer,
            "tokens": len(stage.patches),
            "patches": stage.patches.tolist(),
            "merged": stage.patches[stage.merged].tolist(),
        }
        for stage in survivors.stages
    ]
    return {"visual_tokens": survivors.patches, "clusters": survivors.clusters.tolist(), "stages": stages}
