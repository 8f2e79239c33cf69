"""vitcop in lmms-eval: ``lmms-eval --model vitcop --model_args pretrained=...,method=vitcop,retain=64``.

Nothing outside of this folder imports lmms_eval, and in it only what runs inside of lmms-eval does.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return what lmms-eval registers: the entry point of the group ``lmms_eval.models``.

    lmms-eval prefers the chat class, and takes the simple one with ``--force_simple``: tasks of log-likelihoods and
    multiple choice know that one alone.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vitcop",
        simple_class_path="vitcop_llava.tools.lmms.model.Vitcop",
        chat_class_path="vitcop_llava.tools.lmms.model.VitcopChat",
    )
