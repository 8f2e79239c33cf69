"""What a model computes with at the moment, as a fingerprint: what is stored of its work is good for nothing else.

A fingerprint is read off the model: a digest of evenly spaced numbers of every weight that takes part. Of adapters
those in effect take part, with their scaling; one that is loaded and not active, or disabled, does not. Modules that
hold adapters are known by the attributes that PEFT gives them, so PEFT is not needed.

Running a fixed prompt and comparing what comes out would know adapters of any make. But outputs differ between machines
and attention kernels by more than a light fine-tuning changes them, so that no tolerance separates the two; and the run
would set off everybody's hooks. The bits of the weights are the same everywhere.

Weights that accelerate has moved out of the model are read from where they are, once for each model: without that
any checkpoint of the same configuration would pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vitcop_llava.weights.offloading import find_store, read_store

Fingerprint = dict[str, str]
"""`WEIGHTS`, the digest, which is compared; and `ADAPTERS`, the names that those in effect have, which are shown."""

WEIGHTS, ADAPTERS = "weights", "adapters"
SAMPLES = 16
"""Numbers of each weight that count: enough to tell a checkpoint from one that was trained further."""

_MARK = "_vitcop_fingerprint"
# Where a module that holds adapters keeps what it was put around.
_INNER = ("base_layer", "original_module")
# Samples of weights that are elsewhere, by the hook that brings them in: reading them again may mean reading a disk.
_read: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


def fingerprint(base: nn.Module) -> Fingerprint:
    """Return the fingerprint of a model's base module (its head does not count)."""
    adapters = _find_adapters(base)
    digest, shown = hashlib.sha256(), list[str]()
    for path, held in sorted(adapters.items()):
        shown += [name for name in held.shown if name not in shown]
        if held.setting:
            digest.update(f"{path}: {held.setting}".encode())
    samples = dict(_samples(base, adapters))
    names = sorted(samples)
    content = _contents([samples[name] for name in names])
    digest.update("".join(f"{name} {len(part)} " for name, part in zip(names, content, strict=True)).encode())
    digest.update(b"".join(content))
    return {WEIGHTS: digest.hexdigest(), ADAPTERS: ", ".join(shown) or "none"}


def differing(found: Mapping[str, object], wanted: Fingerprint) -> str:
    """Return how the weights of two fingerprints differ, in words; empty where they do not."""
    if found.get(WEIGHTS) == wanted[WEIGHTS]:
        return ""
    then, now = found.get(ADAPTERS), wanted[ADAPTERS]
    if then == now == "none":
        return "weights of another checkpoint"
    return (
        f"weights of another checkpoint or of other adapters ({then}); those in effect are of this model with "
        f"the adapters ({now})"
    )


def mark(cache: Any, found: Fingerprint) -> None:
    """Note on a cache what its content was computed with; copies of the cache have the note too."""
    vars(cache)[_MARK] = found


def check_marked(cache: object, base: nn.Module) -> None:
    """Raise where a marked cache is continued by a model that computes with something else, and remove the mark.

    It waits for the device; the mark is gone after the first call of a conversation.

    Args:
        cache: Any cache, marked or not.
        base: The base module that is about to continue it.

    Raises:
        ValueError: The weights are others, or the adapters in effect.
    """
    found: Fingerprint | None = getattr(cache, _MARK, None)
    if found is not None:
        check_same(found, base, "past_key_values")
        delattr(cache, _MARK)


def check_same(found: Fingerprint, base: nn.Module, what: str) -> None:
    """Raise unless the model computes with what ``found`` is the fingerprint of.

    Raises:
        ValueError: It does not; the message begins with ``what``.
    """
    if reason := differing(found, fingerprint(base)):
        raise ValueError(
            f"{what} must be made under this model and its adapters, got {reason}; activate those again, or make the "
            "prefix again with encode_image"
        )


class _Adapters(NamedTuple):
    """What one module's adapters do.

    Attributes:
        active: Those that take part as weights of their own.
        setting: What decides beside weights; empty for nothing.
        shown: Those that take part at all, for messages.
    """

    active: tuple[str, ...]
    setting: str
    shown: tuple[str, ...]


def _find_adapters(base: nn.Module) -> dict[str, _Adapters]:
    """Return by module name those that hold adapters."""
    found = {}
    for path, module in base.named_modules():
        active: Any = getattr(module, "active_adapters", None)
        if not isinstance(active, list | tuple):  # a model of transformers has a method of that name
            continue
        is_off, merged = bool(getattr(module, "disable_adapters", False)), getattr(module, "merged_adapters", ())
        if merged:  # the module's own weights hold them; PEFT takes them out in the next call of one that is disabled
            found[path] = _Adapters(
                (), "to be unmerged" if is_off else "", tuple(f"{name} (merged)" for name in merged)
            )
            continue
        scaling: Any = getattr(module, "scaling", None)
        names = () if is_off else tuple(active)
        factors = [scaling.get(name) for name in names] if isinstance(scaling, Mapping) else []
        found[path] = _Adapters(names, str(factors) if any(factor is not None for factor in factors) else "", names)
    return found


def _samples(base: nn.Module, adapters: Mapping[str, _Adapters]) -> Iterator[tuple[str, Tensor]]:
    """Return by name bytes of evenly spaced numbers of every weight that takes part, on its device."""
    for name, value in base.state_dict(keep_vars=True).items():
        own = _own_name(name, adapters) if adapters else name
        if own is None:
            continue
        for inner, tensor in _tensors(own, value):
            if not tensor.is_meta:
                yield inner, _spread(tensor, tensor.dtype)
            elif (store := find_store(base, name)) is not None:
                hook, stored = store
                read = _read.setdefault(hook, {})
                if stored not in read:
                    read[stored] = _spread(read_store(hook, stored), tensor.dtype)
                yield inner, read[stored]


def _own_name(name: str, adapters: Mapping[str, _Adapters]) -> str | None:
    """Return what a weight is called without adapters around it, and one of an adapter by its place among the active
    ones.

    None where it takes no part.
    """
    parts, own = name.split("."), list[str]()
    for place, part in enumerate(parts):
        held = adapters.get(".".join(parts[:place]))
        if held is None or place + 1 == len(parts):
            own.append(part)
        elif part not in _INNER:
            adapter, *rest = parts[place + 1 :]
            return ".".join([*own, part, str(held.active.index(adapter)), *rest]) if adapter in held.active else None
    return ".".join(own)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield a weight's plain tensors: quantized ones are made of several, or are no tensors at all."""
    inner = getattr(value, "__tensor_flatten__", None)
    if inner is not None:
        for part in inner()[0]:
            yield from _tensors(f"{name}.{part}", getattr(value, part))
    elif isinstance(value, Tensor):
        yield name, value.dequantize() if value.is_quantized else value
    elif isinstance(value, tuple | list):
        for number, part in enumerate(value):
            yield from _tensors(f"{name}.{number}", part)


def _spread(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].to(dtype).contiguous().view(torch.uint8)


def _contents(samples: list[Tensor]) -> list[bytes]:
    """Return the bytes of each, read with one transfer for each device."""
    devices: dict[torch.device, list[int]] = {}
    for number, sample in enumerate(samples):
        devices.setdefault(sample.device, []).append(number)
    found = [b""] * len(samples)
    for numbers in devices.values():
        content = torch.cat([samples[number] for number in numbers]).cpu().numpy().tobytes()
        start = 0
        for number in numbers:
            stop = start + samples[number].numel()
            found[number], start = content[start:stop], stop
    return found
