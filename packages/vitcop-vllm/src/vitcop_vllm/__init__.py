"""Prune the visual tokens of LLaVA and Qwen2.5-VL in vLLM: a general plugin, importable without vLLM and torch."""

from __future__ import annotations

__all__ = ["register"]

__version__ = "0.2.0"

_CLASSES = {
    "LlavaForConditionalGeneration": "vitcop_vllm.llava:PrunedLlava",
    "LlavaNextForConditionalGeneration": "vitcop_vllm.llava_next:PrunedLlavaNext",
    "LlavaOnevisionForConditionalGeneration": "vitcop_vllm.llava_onevision:PrunedLlavaOnevision",
    "Qwen2_5_VLForConditionalGeneration": "vitcop_vllm.qwen2_5_vl:PrunedQwen25VL",
}
"""vLLM's classes, by the name that a checkpoint gives, and what takes their place: the same without settings."""


def register() -> None:
    """Offer the classes to vLLM, which calls this in each of its processes and imports a class when it needs one."""
    from vllm import ModelRegistry

    for name, where in _CLASSES.items():
        ModelRegistry.register_model(name, where)
