"""LLaVA-NeXT in vLLM, whose images enter the language model as the tokens that a method keeps."""

from __future__ import annotations

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vitcop_vllm.pruning import PrunedInfo, PrunedProcessor, PrunedVision


class _Info(PrunedInfo, LlavaNextProcessingInfo):  # type: ignore[misc]
    pass


class _Processor(PrunedProcessor, LlavaNextMultiModalProcessor):  # type: ignore[misc]
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlavaNext(PrunedVision, LlavaNextForConditionalGeneration):  # type: ignore[misc]
    """vLLM's LLaVA-NeXT; the same without settings."""
