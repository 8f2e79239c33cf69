"""LLaVA-OneVision in vLLM, whose images enter the language model as the tokens that a method keeps; clips as ever."""

from __future__ import annotations

from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vitcop_vllm.pruning import PrunedInfo, PrunedProcessor, PrunedVision


class _Info(PrunedInfo, LlavaOnevisionProcessingInfo):  # type: ignore[misc]
    pass


class _Processor(PrunedProcessor, LlavaOnevisionMultiModalProcessor):  # type: ignore[misc]
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder)
class PrunedLlavaOnevision(PrunedVision, LlavaOnevisionForConditionalGeneration):  # type: ignore[misc]
    """vLLM's LLaVA-OneVision; the same without settings."""
