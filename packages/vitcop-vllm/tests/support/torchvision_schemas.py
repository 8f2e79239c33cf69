"""Lets torchvision be imported beside a torch for CPUs, for which no build of its operators may be at hand.

vLLM imports torchvision, and uses none of those operators. Importing it asks torch whether two of them are known, so
they are declared, without kernels, when torchvision is first looked for. `nox -s vllm` puts this module into the
site-packages of its environment, and a line beside it that imports it whenever Python starts: vLLM starts processes.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

DECLARED = ("nms", "qnms")


class _Declare(MetaPathFinder):
    """Finds nothing; sees that torchvision is looked for."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        library: Any = torch.library.Library("torchvision", "FRAGMENT")
        for name in DECLARED:
            library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # its declarations end with it


sys.meta_path.insert(0, _Declare())
