"""Video for vitcop: frames of files with their times, and LLaVA-NeXT-Video."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitcop_video.processing import ClipProcessor
    from vitcop_video.readers.base import VideoError
    from vitcop_video.readers.choice import backend_status
    from vitcop_video.video import Video, VideoFile, VideoInfo, open_video, read_video

__all__ = [
    "ClipProcessor",
    "Video",
    "VideoError",
    "VideoFile",
    "VideoInfo",
    "backend_status",
    "open_video",
    "read_video",
]

__version__ = "0.1.0"

# Imported when first asked for: decoders come with libraries that take their time.
_HOMES = {
    "ClipProcessor": "vitcop_video.processing",
    "Video": "vitcop_video.video",
    "VideoError": "vitcop_video.readers.base",
    "VideoFile": "vitcop_video.video",
    "VideoInfo": "vitcop_video.video",
    "backend_status": "vitcop_video.readers.choice",
    "open_video": "vitcop_video.video",
    "read_video": "vitcop_video.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
