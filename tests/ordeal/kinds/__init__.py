"""Every kind of input, by name."""

from __future__ import annotations

from ordeal.kinds import checkpoints, images, lines, methods, options, prefixes, settings, videos
from ordeal.trials import Kind

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("images", images.prepare, share=300, short=250),
        # Its decoder's threads take address space, and little memory.
        Kind("videos", videos.prepare, share=100, short=30, space=2**33),
        Kind("prefixes", prefixes.prepare, share=150, short=150),
        Kind("lines", lines.prepare, share=100, short=60),
        Kind("checkpoints", checkpoints.prepare, share=30, short=15),
        Kind("methods", methods.prepare, share=150, short=400),
        Kind("settings", settings.prepare, share=120, short=300),
        Kind("options", options.prepare, share=50, short=30),
    )
}
