"""Qwen2.5-VL in vLLM, whose images enter the language model as the tokens that a method keeps; clips as ever.

Positions have three axes here, and a token that stays keeps its place on the image. Only the vision step knows which
places these are, and vLLM works positions out before. So they travel as further columns of an image's embeddings, and
are added to its tokens' positions before the language model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.cuda import is_current_stream_capturing
from torch.nn import functional
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vitcop_core import VisionView
from vitcop_llava.engine import EngineParts, Tiling, enter_image, grid_positions
from vitcop_vllm.pruning import FirstLayer, PrunedInfo, PrunedProcessor, check_adapters, count_of, shown_by
from vitcop_vllm.settings import KEY, method_of

_DIGIT = 128
"""Base of the numbers in those columns: embeddings may be bfloat16, which holds integers up to 256."""

_DRAFTS_OF_TOKENS = ("ngram", "ngram_gpu", "suffix")
"""Ways of speculative decoding that read nothing but tokens."""

_COLUMNS = 4
"""A token's row and column on its image, of two digits each."""


class _Info(PrunedInfo, Qwen2_5_VLProcessingInfo):  # type: ignore[misc]
    pass


class _Processor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):  # type: ignore[misc]
    _by_image = "image_grid_thw"

    def _count(self, index: int, settings: str, items: Any, processed: Any) -> int:
        config, image = self.info.get_hf_config(), processed["image"][index]
        _, rows, columns = image["image_grid_thw"].data.tolist()
        side = config.vision_config.spatial_merge_size
        grid = (rows // side, columns // side)
        if KEY not in image:  # embeddings, which are what they are
            return int(grid[0] * grid[1])
        if getattr(config, KEY, None) is None:
            raise ValueError(
                "hf_overrides must have vitcop for an engine of Qwen2.5-VL whose requests bring settings, got none; "
                "give it the settings of requests that bring none, with a retention_ratio of 1 for all tokens"
            )
        return count_of(config, method_of(settings), Tiling(grid), has_cls=False)


def check_engine(vllm_config: Any) -> None:
    """Raise for an engine in which the places of tokens would not reach all that read positions.

    Raises:
        ValueError: It runs the language model in stages or in halves of a batch, drafts with a model, prunes clips, or
            has adapters on the tower.
    """
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    check_adapters(vllm_config)
    drafts = None if speculative is None else speculative.method
    clips = vllm_config.model_config.get_multimodal_config().video_pruning_rate
    for name, given, fitting in (
        ("pipeline_parallel_size", parallel.pipeline_parallel_size, (1,)),
        ("prefill_context_parallel_size", getattr(parallel, "prefill_context_parallel_size", 1), (1,)),
        ("enable_dbo", parallel.use_ubatching, (False,)),
        ("method of speculative_config", drafts, (None, *_DRAFTS_OF_TOKENS)),
        ("video_pruning_rate", clips, (None, 0)),
    ):
        if given not in fitting:
            raise ValueError(
                f"{name} must be {' or '.join(map(str, fitting))} where vitcop prunes images of Qwen2.5-VL, got "
                f"{given}; change it, or take vitcop out of hf_overrides"
            )


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class PrunedQwen25VL(FirstLayer, Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """vLLM's Qwen2.5-VL; the same without settings."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if getattr(vllm_config.model_config.hf_config, KEY, None) is not None:
            check_engine(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._holds = self._moves = False
        most, device = vllm_config.scheduler_config.max_num_batched_tokens, vllm_config.device_config.device
        # A buffer of the module, which is saved and restored where the engine sleeps.
        self.register_buffer("_beside", torch.zeros((2, most), dtype=torch.int64, device=device), persistent=False)
        blocks = getattr(self.visual, "blocks", None)
        if blocks is None:  # an engine for text alone
            return
        # As `prune` does: the last layer whose patches see the whole image.
        block, merger = blocks[max(self.visual.fullatt_block_indexes or [len(blocks) - 1])], self.visual.merger
        block.do_not_compile = merger.do_not_compile = True
        self._scored, self._merge = block.attn, merger.forward
        merger.forward = self._merge_or_hold

    def embed_input_ids(self, input_ids: Tensor, multimodal_embeddings: Any = None, **kwargs: Any) -> Tensor:
        """Return the embeddings of a step's tokens, and note where on their images those stand that stay of them."""
        given, width = list(multimodal_embeddings or ()), self.config.get_text_config().hidden_size
        if self._moves:
            self._beside.zero_()
        self._moves = any(each.shape[1] > width for each in given)
        if self._moves:
            digits = [functional.pad(each[:, width:], (0, _COLUMNS + width - each.shape[1])).long() for each in given]
            beside = torch.cat(digits)
            places = kwargs["is_multimodal"].nonzero()[:, 0].to(self._beside.device)
            self._beside[:, places] = (_DIGIT * beside[:, ::2] + beside[:, 1::2]).mT
        embeddings: Tensor = super().embed_input_ids(input_ids, [each[:, :width] for each in given], **kwargs)
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model."""
        # A graph that is captured is replayed where there is something to add.
        if inputs_embeds is not None and (self._moves or (positions.is_cuda and is_current_stream_capturing())):
            count = min(positions.shape[1], self._beside.shape[1])
            positions[1:, :count] += self._beside[:, :count]  # in place: pieces of the model may be graphs
            # Once: in runs that only warm up, positions are those of the step before.
            self._beside.zero_()
            self._moves = False
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def get_encoder_cudagraph_config(self) -> Any:
        """Return which encodings may be replayed: none of images in an engine that prunes them."""
        found: Any = super().get_encoder_cudagraph_config()
        if getattr(self.config, KEY, None) is None:
            return found
        return replace(found, modalities=[kind for kind in found.modalities if kind != "image"])

    def _merge_or_hold(self, patches: Tensor) -> Tensor:
        if self._holds:
            return patches.reshape(-1, self.visual.merger.hidden_size)
        merged: Tensor = self._merge(patches)
        return merged

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the tokens of each image or clip."""
        codes, pixels, grids = kwargs.pop(KEY, None), kwargs.get("pixel_values"), kwargs.get("image_grid_thw")
        if codes is None or pixels is None or grids is None:
            found = super().embed_multimodal(**kwargs)
            if grids is None or getattr(self.config, KEY, None) is None:
                return found
            return [functional.pad(each, (0, _COLUMNS)) for each in found]  # all images of an engine are as wide
        side, listed = self.visual.spatial_merge_size, grids.tolist()
        tilings = [Tiling((rows // side, columns // side)) for _, rows, columns in listed]
        settings = [bytes(code.tolist()).decode() for code in codes]
        views = self._look(pixels, listed, tilings)
        return [self._tokens(*each) for each in zip(views, settings, tilings, strict=True)]

    def _look(self, pixels: Tensor, grids: list[list[int]], tilings: Sequence[Tiling]) -> list[VisionView]:
        """Return what the tower shows of each image, in one forward over the patches of all."""
        tower, scored = self.visual, self._scored
        metadata = tower.prepare_encoder_metadata(grids)
        self._holds = True
        try:
            with shown_by(scored.qkv) as shown:
                squares = tower(pixels, grid_thw=grids, encoder_metadata=metadata)
        finally:
            self._holds = False
        heads, are_spread = scored.num_attention_heads_per_partition, scored.tp_size > 1
        plain = [self._by_head(part, heads, are_spread=are_spread) for part in shown[0][:, 0].chunk(3, dim=-1)[:2]]
        turned = scored.apply_rotary_emb(
            torch.stack(plain), metadata["rotary_pos_emb_cos"], metadata["rotary_pos_emb_sin"]
        )
        square, order = tower.spatial_merge_size**2, metadata["reverse_indices"]
        counts = [tiling.tokens for tiling in tilings]

        def of_images(states: Tensor) -> Sequence[Tensor]:
            """``[S, H, e]`` of patches in the tower's order to ``[1, H, M, e]`` of each image, square by square."""
            own = states.unflatten(0, (-1, square))[order].split(counts)
            return [each.flatten(0, 1).transpose(0, 1)[None] for each in own]

        return [
            VisionView(
                query_cls=None,
                queries=partial(_given, queries),
                keys=keys,
                attended_keys=attended,
                scale=scored.hidden_size_per_attention_head**-0.5,
                positions=grid_positions(tiling.grid[0], tiling.grid[1], own.device)[None],
                hidden=own[None],
                pool=tower.spatial_merge_size,
            )
            for own, keys, queries, attended, tiling in zip(
                squares.split(counts), *(of_images(each) for each in (plain[1], *turned)), tilings, strict=True
            )
        ]

    def _tokens(self, seen: VisionView, settings: str, tiling: Tiling) -> Tensor:
        """Return the tokens of one image that enter the language model, and where they lie: ``[k, d + columns]``."""
        layers = self.config.get_text_config().num_hidden_layers
        parts = EngineParts(layers, self._project, partial(torch.flatten, end_dim=1), self._first_keys)
        entry = enter_image(method_of(settings), tiling, seen, parts)
        numbers = (entry.places // tiling.grid[1], entry.places % tiling.grid[1])
        digits = [digit for each in numbers for digit in (each // _DIGIT, each % _DIGIT)]
        return torch.cat([entry.tokens, torch.stack(digits, dim=1).to(entry.tokens.dtype)], dim=1)

    def _project(self, squares: Tensor) -> Tensor:
        """``[..., d_v]`` of squares to ``[..., d]``."""
        patches = squares.reshape(-1, squares.shape[-1] // self.visual.spatial_merge_size**2)
        tokens: Tensor = self._merge(patches)
        return tokens.view(*squares.shape[:-1], -1)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        """Return the positions of a prompt, ``[3, N]``, and how far they go beyond its tokens.

        Text stands where it stands in the unpruned prompt. What stays of an image stands at its first token, until
        `forward` adds where on the image that is.
        """
        features = sorted(mm_features, key=lambda each: each.mm_position.offset)
        if not any(KEY in (each.data or ()) for each in features):
            found: tuple[Tensor, int] = super().get_mrope_input_positions(input_tokens, mm_features)
            return found
        parts, stop, first = list[np.ndarray[Any, Any]](), 0, 0
        for feature, (offset, *extents, factor) in zip(features, self.iter_mm_grid_thw(features), strict=True):
            parts.append(np.broadcast_to(np.arange(first, first + offset - stop), (3, offset - stop)))
            first, stop = first + offset - stop, offset + feature.mm_position.length
            where = np.indices(extents).reshape(3, -1)
            where[0] = (where[0] * factor).astype(np.int64)
            is_placed = KEY in (feature.data or ())
            parts.append(first + (np.zeros((3, feature.mm_position.length), dtype=np.int64) if is_placed else where))
            first += int(where.max()) + 1
        rest = len(input_tokens) - stop
        parts.append(np.broadcast_to(np.arange(first, first + rest), (3, rest)))
        return torch.from_numpy(np.concatenate(parts, axis=1)), first - stop


def _given(tensor: Tensor) -> Tensor:
    return tensor
