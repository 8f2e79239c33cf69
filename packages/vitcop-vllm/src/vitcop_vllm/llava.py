"""LLaVA-1.5 in vLLM, whose images enter the language model as the tokens that a method keeps."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
    PixtralHFProcessingInfo,
    _build_llava_or_pixtral_hf_info,
    _build_llava_or_pixtral_hf_processor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vitcop_vllm.pruning import PrunedInfo, PrunedProcessor, PrunedVision

# vLLM runs Pixtral under the same class name, with other processors: those stay as they are.


class _Info(PrunedInfo, LlavaProcessingInfo):  # type: ignore[misc]
    pass


class _Processor(PrunedProcessor, LlavaMultiModalProcessor):  # type: ignore[misc]
    pass


def _info(context: Any) -> Any:
    found = _build_llava_or_pixtral_hf_info(context)
    return found if isinstance(found, PixtralHFProcessingInfo) else _Info(context)


def _processor(info: Any, dummy_inputs: Any) -> Any:
    if isinstance(info, PixtralHFProcessingInfo):
        return _build_llava_or_pixtral_hf_processor(info, dummy_inputs)
    return _Processor(info, dummy_inputs)


@MULTIMODAL_REGISTRY.register_processor(_processor, info=_info, dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlava(PrunedVision, LlavaForConditionalGeneration):  # type: ignore[misc]
    """vLLM's LLaVA-1.5; the same without settings."""
