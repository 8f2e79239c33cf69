"""One run of a model, measured from outside: prefill, tokens after it, memory, and what the cache holds."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vitcop_llava.compat import CACHE

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        prefill_seconds: From the prompt to the logits of its last token, the vision tower included.
        token_seconds: Of one step that generates a token for each row, mean over those after the first; None where
            fewer than two were asked for.
        peak_bytes: The most memory in use above what was before the run: CUDA's by torch's allocator, on a CPU under
            Linux the process's resident memory. None where it cannot be had.
        cache_bytes: What the cache holds after the prefill; see `cache_bytes`.
    """

    prefill_seconds: float
    token_seconds: float | None
    peak_bytes: int | None
    cache_bytes: int


def measure(model: Any, inputs: Mapping[str, Any], *, new_tokens: int = 1) -> Measured:
    """Run a prefill and generate greedily, on the model as it is: plain, or under `prune`.

    Args:
        model: A model with a language head, in evaluation mode.
        inputs: What its ``forward`` takes for a prompt, on its device: ``input_ids`` [B, L], and usually an
            ``attention_mask`` [B, L] and images. Rows padded on the left need the mask.
        new_tokens: Tokens to generate for each row, the one that the prefill gives included. None ends an answer early.

    Raises:
        ValueError: ``new_tokens`` is not positive.
    """
    if new_tokens < 1:
        raise ValueError(f"new_tokens must be at least 1, got {new_tokens}")
    device = inputs["input_ids"].device
    memory = _Memory(device)
    with torch.inference_mode():
        started = now(device)
        token, cache = prefill(model, inputs)
        prefilled = now(device)
        held = cache_bytes(cache)
        stepped = now(device)
        decode_greedily(model, inputs, token, cache, new_tokens - 1)
        ended = now(device)
    each = (ended - stepped) / (new_tokens - 1) if new_tokens > 1 else None
    return Measured(prefilled - started, each, memory.peak(), held)


def prefill(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Cache]:
    """Return the first token of each row, ``[B, 1]``, and the cache; nothing else of the prompt stays in memory."""
    # Where positions have several axes, the model makes them from the grids of images.
    positions = {} if _has_axes(inputs) else _positions(inputs.get("attention_mask"))
    output = model(**inputs, **positions, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1:].argmax(-1), getattr(output, CACHE)


def decode_greedily(model: Any, inputs: Mapping[str, Any], token: Tensor, cache: Cache, steps: int) -> None:
    """Generate ``steps`` tokens more for each row, after ``token``, ``[B, 1]``, and what ``cache`` holds."""
    mask: Tensor | None = inputs.get("attention_mask")
    for _ in range(steps):
        mask = None if mask is None else torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        positions = {name: value[:, -1:] for name, value in _positions(mask).items()}
        if positions and _has_axes(inputs):  # along which an image takes other room than its tokens
            positions = {name: value + model.model.rope_deltas for name, value in positions.items()}
        given = {"input_ids": token, "attention_mask": mask, CACHE: cache, **positions}
        token = model(**given, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)


def cache_bytes(cache: Cache) -> int:
    """Return the bytes of the memory behind the keys and values of all layers; what several of them share counts
    once.
    """
    storages = {}
    for layer in cache.layers:
        for held in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(held, Tensor):
                storage = held.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _has_axes(inputs: Mapping[str, Any]) -> bool:
    """Return whether positions have several axes: such models are told of what kind each token is."""
    return inputs.get("mm_token_type_ids") is not None


def _positions(mask: Tensor | None) -> dict[str, Tensor]:
    """Return the position ids as `generate` makes them from a mask: padding does not count."""
    return {} if mask is None else {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}


def now(device: torch.device) -> float:
    """Return the seconds on a clock, once the device is done with everything that was started on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class _Memory:
    """Memory in use when this was made, and the most since."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._start()

    def _start(self) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        if self._device.type != "cpu":
            return None
        # glibc keeps what was freed, and a peak that fits in there would not show.
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            _CLEAR.write_text("5")  # puts the high-water mark back to what is resident now
            return _status("VmHWM")
        except OSError:  # no Linux, or a container that forbids it
            return None

    def peak(self) -> int | None:
        """Return the most above what was in use before, in bytes."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        most = _status("VmHWM")
        return None if most is None else max(most - self._before, 0)


def _status(field: str) -> int | None:
    """Return a field of the process's status, in bytes; None where there is no such field."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
