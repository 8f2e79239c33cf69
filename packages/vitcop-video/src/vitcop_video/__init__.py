"""Video for vitcop: frames of files with their times, and LLaVA-NeXT-Video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcop_core.lazy import lazy_names

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

__version__ = "0.2.0"

# Imported when first asked for: decoders come with libraries that take their time.
_HOMES = {
    "vitcop_video.processing": ("ClipProcessor",),
    "vitcop_video.readers.base": ("VideoError",),
    "vitcop_video.readers.choice": ("backend_status",),
    "vitcop_video.video": (
        "Video",
        "VideoFile",
        "VideoInfo",
        "open_video",
        "read_video",
    ),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
