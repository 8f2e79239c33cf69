"""What ``--model_args`` says: the model, the method and its budget, and how visuals and prompts are prepared."""

from __future__ import annotations

from dataclasses import dataclass

from vitcop_core import Method, find_method
from vitcop_core.checks import check_int
from vitcop_llava.tools.lmms.visuals import DEFAULT_FRAMES, Clipping
from vitcop_llava.tools.media.video_support import Sampling, need_support
from vitcop_llava.tools.model.budget import parse_budget
from vitcop_llava.tools.model.loading import Loaded, load

NO_METHOD = "none"
_ASPECTS = ("original", "pad")


@dataclass(frozen=True)
class Arguments:
    """Settings of a model in lmms-eval, as its command line hands them over.

    Attributes:
        pretrained: A folder, a hub id, ``demo`` or ``demo-video``.
        method: A name, or a name with settings in quotes as in ``'fastv(keep=30)'``; ``none`` for the model as it is.
            From Python, a method too.
        retain: Tokens of an image (64), a share (1/9, 11.1%) or ``all``. None is one ninth, or what the method's own
            settings say.
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``.
        chat_template: See :func:`~vitcop_llava.tools.lmms.prompts.render`.
        image_aspect_ratio: ``original``, or ``pad`` to pad pictures to squares with the processor's mean color, as
            LLaVA-1.5's own code does.
        max_frames_num: How many frames of a video, at equal distances.
        keep_newline: See :func:`vitcop_llava.prune`.

    Raises:
        TypeError, ValueError: A setting is none of those.
    """

    pretrained: str = "demo"
    method: str | Method = "vitcop"
    retain: str | int | float | None = None
    dtype: str = "auto"
    chat_template: str | None = None
    image_aspect_ratio: str = "original"
    max_frames_num: int = DEFAULT_FRAMES
    keep_newline: bool = False

    def __post_init__(self) -> None:
        """Check what nothing else does."""
        if self.image_aspect_ratio not in _ASPECTS:
            raise ValueError(f"image_aspect_ratio must be one of {', '.join(_ASPECTS)}, got {self.image_aspect_ratio}")
        check_int("max_frames_num", self.max_frames_num, 1)

    def find_method(self) -> Method | None:
        """Return the method with its budget; None for the model as it is.

        Raises:
            ValueError: There is no such method, or budget.
        """
        if not isinstance(self.method, str):
            return self.method
        text = self.method.strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # lmms-eval leaves quotes where they are
            text = text[1:-1]
        if text.lower() == NO_METHOD:
            if self.retain is not None:
                raise ValueError(f"retain must be left out with method={NO_METHOD}, got {self.retain}")
            return None
        if self.retain is None and "(" in text:
            return find_method(text)
        given = None if self.retain is None else str(self.retain)
        return find_method(text, **parse_budget(given, "retain").settings)

    def load(self, device: str) -> Loaded:
        """Return the model.

        Args:
            device: Where it goes; ``auto`` for the first GPU, if there is one.

        Raises:
            TypeError, ValueError: There is no such model.
            HubError: The hub cannot be reached.
        """
        source: str | None = self.pretrained
        if source == "demo":
            source = None
        elif source == "demo-video":
            source = str(need_support().demo_folder)
        return load(source, device=device, dtype=self.dtype)

    def clipping(self, loaded: Loaded) -> Clipping:
        """Return how visuals are looked at.

        Raises:
            ValueError: Pictures cannot be padded for this model.
        """
        sampling = Sampling(frames=self.max_frames_num, time_limit=None, at_most=True)
        gathers = loaded.parts.video is not None
        if self.image_aspect_ratio == "original":
            return Clipping(sampling, gathers)
        if loaded.parts.anyres is not None or loaded.parts.squares is not None:
            raise ValueError(
                f"image_aspect_ratio must be original for a {type(loaded.model).__name__}, which takes pictures of any "
                f"shape, got {self.image_aspect_ratio}"
            )
        red, green, blue = (int(255 * mean) for mean in loaded.processor.image_processor.image_mean)
        return Clipping(sampling, gathers, (red, green, blue))
