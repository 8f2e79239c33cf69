"""What pruned models of vLLM have in common: settings in the front end, and Stage I in the vision step.

vLLM sees an image of k tokens and knows of nothing else. Its scheduler, its cache and its prefix cache are as ever. The
front end counts with the plan, so whatever does not fit is refused there, before anything runs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement

from vitcop_core import EarlyViTCoP, Method, VisionView
from vitcop_llava.engine import (
    EngineParts,
    Tiling,
    entry_tokens,
    grid_positions,
    interpolate_tiles,
    plan_image,
    tile_image,
)
from vitcop_vllm.settings import KEY, as_text, method_of

_TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Kinds of towers, and what models must select of them: a CLIP's first token is a CLS token, which they leave out."""

_MOST_TILES = 9
"""Tiles' worth of tokens of an image beside its base, in LLaVA-OneVision as vLLM runs it."""

_PLAIN_TOWER = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
"""How the names of a tower's weights begin where they leave out a part that vLLM's have."""

_DECODERS = ("llama", "mistral", "qwen2", "qwen2_5_vl_text")
"""Kinds of language models whose first layer can be asked for keys."""


def tiling_of(config: Any, height: int, width: int) -> Tiling:
    """Return how an image of that size lies in units, from the model's configuration."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if pinpoints is None:
        return Tiling((side, side))
    tiling = tile_image(height, width, pinpoints=pinpoints, tile_size=vision.image_size, patch_size=vision.patch_size)
    return interpolate_tiles(tiling, _MOST_TILES) if config.model_type == "llava_onevision" else tiling


def count_tokens(config: Any, settings: str, height: int, width: int) -> int:
    """Return how many tokens settings leave of an image.

    Args:
        config: The model's.
        settings: From `as_text`.
        height: Of the image, in pixels.
        width: Likewise.

    Raises:
        ValueError: The vision tower or the language model is not one that the method can read, the method also cuts
            inside the language model, or the budget does not fit the image.
    """
    method, kind, strategy = method_of(settings), config.vision_config.model_type, config.vision_feature_select_strategy
    if _TOWERS.get(kind) != strategy:
        fitting = " or ".join(f"a {tower} with {choice!r}" for tower, choice in _TOWERS.items())
        raise ValueError(f"model must have {fitting} to be pruned in vLLM, got a {kind} with {strategy!r}")
    return count_of(config, method, tiling_of(config, height, width), has_cls=strategy == "default")


def count_of(config: Any, method: Method, tiling: Tiling, *, has_cls: bool) -> int:
    """Return how many tokens a method leaves of an image that lies like that.

    Args:
        config: The model's.
        method: The method.
        tiling: How the image lies in units.
        has_cls: Whether the vision tower has a CLS token.

    Raises:
        ValueError: The vision tower or the language model is not one that the method can read, the method also cuts
            inside the language model, or the budget does not fit the image.
    """
    if method.needs_cls and not method.needs_projected and not has_cls:
        raise ValueError(
            f"model must have a vision tower with a CLS token for {type(method).__name__} with these settings, got a "
            f"{config.vision_config.model_type}; use vision_saliency='received' or 'auto'"
        )
    text = config.get_text_config()
    if reads_first_layer(method) and text.model_type not in _DECODERS:
        raise ValueError(
            f"ranking must be 'vision' in vLLM but over {', '.join(_DECODERS)}, got 'layer0' for a {text.model_type}"
        )
    return plan_image(method, text.num_hidden_layers, tiling)


def reads_first_layer(method: Method) -> bool:
    """Return whether a method ranks tokens by what the first decoder layer makes of them."""
    return isinstance(method, EarlyViTCoP) and method.ranking == "layer0"


class _Untold:
    """A processor of transformers, called without the settings, which vLLM hands on with all other arguments."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(KEY, None)
        return self._processor(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


class PrunedInfo:
    """Mixed into vLLM's processing info: an image has as many tokens as its settings leave."""

    def settings(self: Any, mm_kwargs: Mapping[str, object] | None = None) -> str | None:
        """Return the settings of a request, or else of the engine, as text; None where nothing is to be pruned."""
        found = self.ctx.get_merged_mm_kwargs(mm_kwargs or {}).get(KEY)
        found = getattr(self.get_hf_config(), KEY, None) if found is None else found
        return None if found is None else as_text(found)

    def get_hf_processor(self, **kwargs: object) -> Any:
        """Return transformers' processor, which is not told the settings."""
        kwargs.pop(KEY, None)
        return _Untold(super().get_hf_processor(**kwargs))  # type: ignore[misc]


class PrunedProcessor:
    """Mixed into vLLM's processor: checks the settings, and sends them along with the pixels."""

    info: Any
    _by_image = "pixel_values"
    """What transformers' processor gives one of for each image."""

    def _postprocess_hf_mm_data(self, mm_data: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        # The vision step has no other channel, and requests of one batch may differ.
        processed = super()._postprocess_hf_mm_data(mm_data, hf_processor_mm_kwargs, processed_data)  # type: ignore[misc]
        settings, images = self.info.settings(hf_processor_mm_kwargs), processed.get(self._by_image)
        if settings is not None and images is not None and processed.get("pixel_values") is not None:
            code = torch.frombuffer(bytearray(settings.encode()), dtype=torch.uint8).long()
            processed[KEY] = code.expand(len(images), -1).clone()
        return processed

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # Settings belong to an image's identity: its tokens are others under others.
        settings = self.info.settings(inputs.hf_processor_mm_kwargs)
        model = self.info.model_id + (settings or "")
        return inputs.get_mm_hashes(model, self.info.ctx.get_mm_config().mm_hasher_algorithm)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**fields, KEY: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        settings = self.info.settings(hf_processor_mm_kwargs)
        updates: Sequence[Any] = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        if settings is None:
            return updates
        token = self.info.get_hf_config().image_token_id

        def replacement(index: int) -> list[int]:
            return [token] * self._count(index, settings, mm_items, out_mm_kwargs)

        others = [update for update in updates if update.modality != "image"]
        return [PromptReplacement(modality="image", target=[token], replacement=replacement), *others]

    def _count(self, index: int, settings: str, items: Any, processed: Any) -> int:
        """Return how many tokens an image of a request has.

        Args:
            index: Which it is.
            settings: From `as_text`.
            items: What the request brings.
            processed: What the processor made of it.
        """
        images = items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
        if isinstance(images, ImageEmbeddingItems):
            count: int = images.get_feature_size(index)
            return count
        size = images.get_image_size(index)
        return count_tokens(self.info.get_hf_config(), settings, size.height, size.width)


def _given(tensor: Tensor) -> Tensor:
    return tensor


def check_adapters(vllm_config: Any) -> None:
    """Raise for an engine whose adapters on the tower and the projector would not know which rows are whose.

    Raises:
        ValueError: It has such adapters.
    """
    lora = vllm_config.lora_config
    if lora is not None and lora.enable_tower_connector_lora:
        raise ValueError(
            "enable_tower_connector_lora must be False where vitcop prunes images, got True: vLLM takes what stays of "
            "an image for all that the tower sees; change it, or take vitcop out of hf_overrides"
        )


@contextmanager
def shown_by(projection: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a projection of vLLM's makes inside the block.

    The hook is put on as late as this: vLLM may have put an adapter in the projection's place since the model was made.
    """
    found: list[Tensor] = []
    handle = projection.register_forward_hook(lambda _, args, output: found.append(output[0]))
    try:
        yield found
    finally:
        handle.remove()


class FirstLayer:
    """Mixed into vLLM's model: what is asked of its language model, and gathered from all ranks."""

    def _by_head(self, states: Tensor, heads: int, *, are_spread: bool) -> Tensor:
        """``[..., w]`` of this rank's ``heads`` to ``[..., H, e]`` of all of them."""
        if are_spread:
            states = tensor_model_parallel_all_gather(states.contiguous())
            heads *= get_tensor_model_parallel_world_size()
        return states.view(*states.shape[:-1], heads, -1)

    def _first_keys(self: Any, tokens: Tensor) -> Tensor:
        """Return the keys that the first decoder layer makes of tokens: ``[C, k, d]`` to ``[C, G, k, e]``."""
        first = self.language_model.model.layers[0]
        attention = first.self_attn
        # Without adapters, which go with the requests of a step: an image is ranked once, for whoever asks about it.
        projection = getattr(attention.qkv_proj, "base_layer", attention.qkv_proj)
        states, _ = projection(first.input_layernorm(tokens.flatten(0, 1)))
        keys: Tensor = states[:, attention.q_size : attention.q_size + attention.kv_size]
        if get_tensor_model_parallel_world_size() > 1:
            # Ranks that share a head bring it as often as each other, which changes no order of norms.
            keys = tensor_model_parallel_all_gather(keys.contiguous())
        by_head: Tensor = keys.unflatten(-1, (-1, attention.head_dim)).unflatten(0, tokens.shape[:2]).transpose(1, 2)
        return by_head


class PrunedVision(FirstLayer):
    """Mixed into vLLM's model: Stage I on what the last layer that vLLM builds of the tower shows."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if getattr(vllm_config.model_config.hf_config, KEY, None) is not None:
            check_adapters(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._config = vllm_config
        tower: Any = getattr(self, "vision_tower", None)
        encoder = getattr(getattr(tower, "vision_model", tower), "encoder", None)
        self._scored: Any = None if encoder is None else encoder.layers[-1].self_attn

    def load_weights(self: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load weights whose tower is named as published checkpoints name it, or as transformers 5 does."""
        named = ((_PLAIN_TOWER.sub(r"\1vision_model.", name), each) for name, each in weights)
        loaded: set[str] = super().load_weights(named)  # type: ignore[misc]
        return loaded

    def embed_multimodal(self: Any, **kwargs: Any) -> Any:
        """Return the tokens of each image."""
        codes, pixels = kwargs.pop(KEY, None), kwargs.get("pixel_values")
        if codes is None or pixels is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        check_adapters(self._config)
        sizes = kwargs.get("image_sizes")
        sizes = [(0, 0)] * len(pixels) if sizes is None else [tuple(map(int, size)) for size in sizes]
        tilings = [tiling_of(self.config, *size) for size in sizes]
        # Beside others an image may have tiles that are none of its own.
        units = [
            each[None] if each.ndim == 3 else each[: len(tiling.boxes)]
            for each, tiling in zip(pixels, tilings, strict=True)
        ]
        views = self._look(torch.cat(units), [len(each) for each in units])
        settings = [bytes(code.tolist()).decode() for code in codes]
        return [self._tokens(*each) for each in zip(views, settings, tilings, sizes, strict=True)]

    def _look(self: Any, pixels: Tensor, counts: list[int]) -> list[VisionView]:
        """Return what the tower shows of each image, in one forward over the units of all."""
        with shown_by(self._scored.qkv_proj) as shown:
            whole = self.vision_tower(pixels, feature_select_strategy="full")
        queries, keys, _ = shown[0].chunk(3, dim=-1)
        are_spread = queries.shape[-1] < whole.shape[-1]
        heads = self._scored.num_heads_per_partition
        parts = (self._by_head(part, heads, are_spread=are_spread) for part in (queries, keys))
        queries, keys = (part.transpose(1, 2) for part in parts)
        has_cls = self.config.vision_feature_select_strategy == "default"
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        positions = grid_positions(side, side, whole.device)
        return [
            VisionView(
                query_cls=asked[:, :, 0] if has_cls else None,
                keys=key,
                scale=self._scored.scale,
                positions=positions.expand(len(features), -1, -1),
                hidden=features[:, 1:] if has_cls else features,
                hidden_cls=features[:, 0] if has_cls else None,
                queries=partial(_given, asked),
            )
            for asked, key, features in zip(*(each.split(counts) for each in (queries, keys, whole)), strict=True)
        ]

    def _tokens(self: Any, seen: VisionView, settings: str, tiling: Tiling, size: tuple[int, int]) -> Tensor:
        """Return the tokens of one image that enter the language model: ``[k, d]``."""

        def pack(tokens: Tensor) -> Tensor:
            if not tiling.tiles[0]:
                return tokens.flatten(0, 1)
            known = inspect.signature(self._merge_image_patch_embeddings).parameters
            newline = {"image_newline": self.image_newline} if "image_newline" in known else {}
            merge = partial(self._merge_image_patch_embeddings, strategy="spatial_unpad", **newline)
            packed: Tensor = merge(torch.tensor(size), tokens)
            return packed

        parts = EngineParts(
            self.config.get_text_config().num_hidden_layers, self.multi_modal_projector, pack, self._first_keys
        )
        return entry_tokens(method_of(settings), tiling, seen, parts)
