"""What the tasks beside this file call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image


def picture(doc: Mapping[str, Any]) -> list[Image.Image]:
    """Return the picture that a question is about; none for a question of text alone."""
    if not doc["image"]:
        return []
    with Image.open(doc["image"]) as image:
        return [image.convert("RGB")]


def video(doc: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the video that a question is about, named as one: an animated GIF would be taken for a picture."""
    return [{"type": "video", "path": doc["video"]}]


def asked(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """Return a question with what a task says after it."""
    return f"{doc['question']}{(lmms_eval_specific_kwargs or {}).get('post_prompt', '')}"


def right_choice(doc: Mapping[str, Any]) -> int:
    """Return the number of the right choice."""
    found: int = doc["choices"].index(doc["answer"])
    return found


def mmbench_accuracy(results: Sequence[Mapping[str, Any]]) -> float:
    """Return MMBench's accuracy in percent: a question counts if it is answered right in every order of its choices."""
    from lmms_eval.tasks.mmbench.cn_utils import mmbench_evaluator

    accuracy, _, _ = mmbench_evaluator.eval_result(results, eval_method="static")
    return 100.0 * float(accuracy)
