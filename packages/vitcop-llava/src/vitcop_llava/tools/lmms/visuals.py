"""What tasks of lmms-eval show a model: pictures, frames, and files of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitcop_llava.tools.media.images import read_image
from vitcop_llava.tools.media.video_support import Clip, Sampling, is_video, need_support
from vitcop_llava.tools.model.answer import Medium

DEFAULT_FRAMES = 8
"""Of a video: what LLaVA-NeXT-Video is usually asked about."""


@dataclass(frozen=True)
class Clipping:
    """How visuals are looked at.

    Attributes:
        sampling: which frames of a video.
        gathers: whether more pictures than that are the frames of a clip, in a prompt that shows no other.
        border: the color, 0 to 255 each, that pictures are padded to squares with, as LLaVA-1.5's own code does; None
            leaves them as they are.
    """

    sampling: Sampling = field(default_factory=Sampling)
    gathers: bool = False
    border: tuple[int, int, int] | None = None


def read_visual(
    visual: Any, clipping: Clipping, *, is_video: bool = False, start: float | None = None, end: float | None = None
) -> Medium:
    """Return a picture or a clip.

    Args:
        visual: a picture, the name of a file, frames ``[F, H, W, 3]`` uint8 or as a list of pictures, or a video as
            ``{"path" or "url": ..., "video_start": ..., "video_end": ...}``.
        clipping: how it is looked at.
        is_video: whether the name of a file is that of a video, whatever its ending.
        start: seconds of a video before which no frame is looked at.
        end: seconds from which on none is.

    Raises:
        TypeError: it is something else, such as sound.
        ValueError: the file cannot be read.
    """
    if isinstance(visual, Image.Image):
        return _squared(visual.convert("RGB"), clipping.border)
    if isinstance(visual, Mapping) and {"path", "url"} & {*visual}:
        name = visual.get("path") or visual.get("url")
        return read_visual(name, clipping, is_video=True, start=visual.get("video_start"), end=visual.get("video_end"))
    if isinstance(visual, str | Path):
        return _read_file(Path(visual), clipping, is_video, start, end)
    if isinstance(visual, list | tuple) and visual and all(isinstance(frame, Image.Image) for frame in visual):
        return _clip_of(visual, clipping.sampling)
    if isinstance(visual, np.ndarray) and visual.ndim == 4 and visual.shape[3] == 3 and visual.dtype == np.uint8:
        return _clip_of([*visual], clipping.sampling)
    raise TypeError(f"visual must be a picture, frames or the name of a file, got a {type(visual).__name__}")


def gather(media: Sequence[Medium], clipping: Clipping) -> list[Medium]:
    """Return what a prompt shows, with its pictures as one clip where they are too many for anything else."""
    pictures = [each for each in media if isinstance(each, Image.Image)]
    most = clipping.sampling.frames or DEFAULT_FRAMES
    if not clipping.gathers or len(pictures) <= most or len(pictures) < len(media):
        return [*media]
    return [_clip_of(pictures, clipping.sampling)]


def _read_file(path: Path, clipping: Clipping, video: bool, start: float | None, end: float | None) -> Medium:
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise ValueError(f"video must be a file, or a folder of pictures, got {path}")
        return _clip_of(files, clipping.sampling, path)
    if video or is_video(path):
        return need_support().read_clip(path, replace(clipping.sampling, start=start, end=end))
    return _squared(read_image(path), clipping.border)


def _clip_of(frames: Sequence[Any], sampling: Sampling, path: Path = Path("frames")) -> Clip:
    """Return so many frames at equal distances, as of a video."""
    count = min(len(frames), sampling.frames or DEFAULT_FRAMES)
    indices = np.arange(count) * len(frames) // count
    chosen = [frames[index] for index in indices.tolist()]
    pixels = np.stack([_pixels(read_image(each) if isinstance(each, Path) else each) for each in chosen])
    return Clip(path, pixels, indices.astype(np.float64), indices, len(frames), "frames")


def _pixels(frame: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)


def _squared(picture: Image.Image, border: tuple[int, int, int] | None) -> Image.Image:
    side = max(picture.size)
    if border is None or picture.width == picture.height:
        return picture
    square = Image.new("RGB", (side, side), border)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
