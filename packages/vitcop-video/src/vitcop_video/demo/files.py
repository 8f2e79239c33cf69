"""A demo clip as a video file."""

from __future__ import annotations

from pathlib import Path

import av

from vitcop_video.demo.events import render_clip, sample_clip

FRAMES_PER_SECOND = 2


def write_demo_clip(path: Path, seed: int, size: int = 336) -> Path:
    """Writes the clip of ``seed`` as H.264 at two frames a second; the container follows from the name.

    Args:
        path: Where to; a file that is there is replaced.
        seed: As of :func:`vitcop_video.demo.events.sample_clip`.
        size: Pixels each way, even.

    Returns:
        The path.

    Raises:
        ValueError: ``size`` is odd or not positive, or the name ends in no container's ending.
        OSError: The file cannot be written.
    """
    if size < 2 or size % 2:
        raise ValueError(f"size: must be positive and even, got {size}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "12"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in render_clip(sample_clip(seed), size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
