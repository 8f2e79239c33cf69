"""Prefixes in safetensors files: what is written, and everything that is checked before a byte of it is used.

Tensors: ``input_ids`` [L]; ``keys.{layer}`` and ``values.{layer}`` [G, P, e]; ``columns.{group}`` [P], the logical
column of each slot, where anything was dropped. Metadata, under one name so that equal prefixes make equal files: the
JSON of version, identity, groups and report, with a digest of the whole file (see `sealed_file`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcop_core import Plan
from vitcop_core.files import open_regular
from vitcop_core.shown import shortened
from vitcop_llava.families import Parts
from vitcop_llava.prefix.sealed_file import (
    DTYPES,
    DamageError,
    Header,
    parse_json,
    read_header,
    read_tensors,
    write_sealed,
)
from vitcop_llava.pruner import Settings
from vitcop_llava.report import Report
from vitcop_llava.report_rows import row_content, row_of
from vitcop_llava.sequence.cache import PrunedLayer
from vitcop_llava.weights.fingerprint import ADAPTERS, WEIGHTS, differing, fingerprint
from vitcop_llava.weights.offloading import execution_device

Identity = dict[str, str]
"""What a prefix belongs to, by name: model class, method, dtype, configuration, and the model's fingerprint."""

FORMAT, VERSION = "vitcop-image-prefix", 3
_LONGEST = 300
"""Characters of what a message quotes."""

# What a configuration says of running, printing and training a model, and not of what it computes.
_NOT_COMPUTED = frozenset(
    "transformers_version architectures dtype torch_dtype use_cache return_dict chunk_size_feed_forward id2label "
    "label2id problem_type pad_token_id bos_token_id eos_token_id initializer_range initializer_factor "
    "attention_dropout output_hidden_states output_attentions".split()
)
_REMEDY = "make the prefix again with encode_image"
_MOST_CONTEXTS = 4  # more than the model's own, for positions that are scaled
_MOST_COUNTED = 2**31


@dataclass(frozen=True, eq=False)
class StoredPrefix:
    """What a file holds: ``[1, L]`` ids, the cache's layers of one row, the report, and what it all belongs to."""

    input_ids: Tensor
    layers: Sequence[PrunedLayer]
    report: Report
    identity: Identity


def identity_of(model: nn.Module, parts: Parts, settings: Settings, dtype: torch.dtype) -> Identity:
    """Return what a prefix of this model belongs to."""
    config: Any = model.config
    plain = json.loads(json.dumps(config.to_dict(), default=str))
    method = f"{settings.method!r}{' with keep_newline=True' if settings.keep_newline else ''}"
    own = {"model": type(model).__name__, "method": method, "dtype": str(dtype).removeprefix("torch.")}
    return own | dict(_flattened("config", plain)) | fingerprint(parts.base)


def _flattened(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        yield name, json.dumps(value, sort_keys=True)
        return
    for key, inner in value.items():
        if key not in _NOT_COMPUTED and not key.startswith("_"):
            yield from _flattened(f"{name}.{key}", inner)


def write_prefix(path: str | os.PathLike[str], prefix: StoredPrefix) -> None:
    """Write a prefix whole or not at all: whoever reads meanwhile sees the old file or the new.

    Raises:
        OSError: It cannot be written.
    """
    tensors = {"input_ids": prefix.input_ids[0]}
    for index, layer in enumerate(prefix.layers):
        assert layer.keys is not None  # a prefix is filled
        assert layer.values is not None
        tensors |= {f"keys.{index}": layer.keys[0], f"values.{index}": layer.values[0]}
        if layer.columns is not None:
            tensors[f"columns.{layer.group}"] = layer.columns[0]
    (row,), report = prefix.report.rows, prefix.report
    content = {
        "version": VERSION,
        "identity": prefix.identity,
        "groups": [layer.group for layer in prefix.layers],
        "report": {
            "row": row_content(row),
            "distance_ratio": _finite(report.distance_ratio),
            "note": report.note,
            "cutoff_distance": _finite(report.cutoff_distance),
        },
    }
    write_sealed(path, tensors, FORMAT, content)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def read_prefix(path: str | os.PathLike[str], model: nn.Module, parts: Parts, settings: Settings) -> StoredPrefix:
    """Read a prefix that belongs to ``model`` under those settings.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, no prefix, or belongs elsewhere.
    """
    try:
        with open_regular(path) as stream:
            header = read_header(stream)
            content = _content(path, header)
            _check_size(path, header, parts)
            tensors = read_tensors(stream, header)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"path must be an existing file, got {path}") from error
    except OSError as error:
        raise ValueError(f"path must be a whole safetensors file, got {path}: {error.strerror or error}") from error
    except DamageError as error:
        raise ValueError(f"path {path} must {error}; {_REMEDY}") from error
    return _Reader(path, content, tensors, parts).read(model, settings)


def _content(path: str | os.PathLike[str], header: Header) -> dict[str, Any]:
    """Return the metadata of a file of this version; of another one nothing else is known."""
    _require(path, FORMAT in header.metadata, "metadata", f"that of a {FORMAT}", f"{sorted(header.metadata)[:4]}")
    try:
        content = parse_json(header.metadata[FORMAT])
    except (ValueError, RecursionError):
        content = None
    kinds = {"identity": dict, "groups": list, "report": dict}
    version = content.get("version") if isinstance(content, dict) else None
    is_older = type(version) is int and version in range(VERSION)
    remedy = f"; {_REMEDY}" if is_older else ""
    _require(path, type(version) is int and version == VERSION, "version", str(VERSION), f"{version!s:.40}{remedy}")
    fits = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    _require(path, fits, "metadata", f"JSON with {', '.join(kinds)}", "something else")
    found: dict[str, Any] = content
    return found


def _check_size(path: str | os.PathLike[str], header: Header, parts: Parts) -> None:
    """Raise where a file holds more than the model could have written, before that is read."""
    shape, most = parts.shape, _MOST_CONTEXTS * (getattr(parts.config, "max_position_embeddings", None) or 2**20)
    element = next(parts.language_model.parameters()).element_size()
    each = 2 * shape.num_kv_heads * shape.head_dim * element + 8  # bytes of a token in a layer
    _require(
        path,
        header.size <= each * (shape.num_layers + 1) * most and len(header.tensors) <= 3 * shape.num_layers + 1,
        "size",
        f"that of a prompt of at most {most:,} tokens in {shape.num_layers} layers",
        f"{len(header.tensors):,} tensors of {header.size:,} bytes",
    )


def _require(path: str | os.PathLike[str], condition: bool, what: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"path {path} must be a prefix whose {what} is {expected}, got {_cut(got)}")


class _Reader:
    """A file as it was written, which may still be of another model or make no sense."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        content: dict[str, Any],
        tensors: Mapping[str, Tensor],
        parts: Parts,
    ) -> None:
        self._path, self._content, self._parts = path, content, parts
        self._tensors, self._names = tensors, set(tensors)

    def read(self, model: nn.Module, settings: Settings) -> StoredPrefix:
        content, shape = self._content, self._parts.shape
        dtype = next(self._parts.language_model.parameters()).dtype
        identity = identity_of(model, self._parts, settings, dtype)
        self._check_identity(content["identity"], identity)
        groups = self._groups(content["groups"])
        (length,) = self._check_header("input_ids", "I64", (None,))
        columns: dict[int, Tensor] = {}
        names = {"input_ids"}
        for index, group in enumerate(groups):
            if (name := f"columns.{group}") in self._names and group not in columns:
                self._check_header(name, "I64", (None,))
                columns[group] = self._tensors[name]
                names.add(name)
            slots = len(columns[group]) if group in columns else length
            for kind in ("keys", "values"):
                want = (shape.num_kv_heads, slots, shape.head_dim)
                self._check_header(f"{kind}.{index}", DTYPES.get(dtype, str(dtype)), want)
                names.add(f"{kind}.{index}")
        self._require(self._names == names, "list of tensors", "complete", f"{sorted(self._names - names)[:3]}")
        ids = self._tensors["input_ids"]
        self._check_values(ids, columns)
        report = self._report(content["report"], settings)
        plan = report.rows[0].plan
        assert plan is not None  # checked
        layers = [self._layer(index, group, ids, columns, plan) for index, group in enumerate(groups)]
        return StoredPrefix(ids[None].to(execution_device(self._parts.embeddings)), layers, report, identity)

    def _require(self, condition: bool, what: str, expected: str, got: object) -> None:
        _require(self._path, condition, what, expected, got)

    def _check_identity(self, found: Mapping[str, object], wanted: Identity) -> None:
        # Another version of transformers may know further settings; those that both know decide.
        known, compared = {"model", "method", "dtype"}, [name for name in wanted if name not in (WEIGHTS, ADAPTERS)]
        differ = [name for name in compared if (name in found or name in known) and found.get(name) != wanted[name]]
        weights = differing(found, wanted)
        if differ or weights:
            # Other weights follow from another model or dtype, and are worth a word only where they are all.
            reasons = [f"{name} {_difference(found.get(name), wanted[name])}" for name in differ[:4]] or [weights]
            raise ValueError(
                f"path {self._path} must be made under this model, method and dtype, got {'; '.join(reasons)}"
            )

    def _groups(self, groups: list[Any]) -> list[int]:
        fits = len(groups) == self._parts.shape.num_layers and all(type(group) is int for group in groups)
        pairs = zip([0, *groups], groups, strict=False)
        fits = fits and all(after - before in (0, 1) for before, after in pairs)
        self._require(fits, "groups", f"{self._parts.shape.num_layers} ascending numbers from 0", str(groups)[:80])
        return groups

    def _check_header(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> list[int]:
        self._require(name in self._names, name, "there", "nothing")
        tensor = self._tensors[name]
        kind, found = DTYPES[tensor.dtype], list(tensor.shape)
        fits = len(found) == len(shape) and all(want in (None, have) for want, have in zip(shape, found, strict=False))
        expected = f"{dtype} of shape {['L' if want is None else want for want in shape]}"
        self._require(fits and kind == dtype, name, expected, f"{kind} of {found}")
        return found

    def _check_values(self, ids: Tensor, columns: dict[int, Tensor]) -> None:
        words, is_text = self._parts.config.vocab_size, ids != self._parts.image_token_id
        fits = not bool(((ids < 0) | ((ids >= words) & is_text)).any()) and not bool(is_text.all())
        self._require(fits, "input_ids", f"ids from 0 to {words - 1}, and placeholders", "others")
        text = is_text.nonzero()[:, 0]
        for group, places in columns.items():
            inside = len(places) > 0 and bool((places[1:] > places[:-1]).all())
            inside = inside and int(places[0]) >= 0 and int(places[-1]) < len(ids)
            whole = inside and bool(torch.isin(text, places).all())
            self._require(whole, f"columns.{group}", f"ascending, below {len(ids)}, with all text", "others")

    def _report(self, stored: dict[str, Any], settings: Settings) -> Report:
        ratio, note, row = stored.get("distance_ratio"), stored.get("note"), None
        cutoff = stored.get("cutoff_distance")  # of the first image; files of earlier releases have none
        try:
            row = row_of(stored["row"], settings.method)
        except (KeyError, TypeError, ValueError) as error:
            self._require(False, "report", "what was written", repr(error))
        assert row is not None  # or that has raised
        counts = [row.images, row.text_tokens, row.newlines, row.newlines_kept]
        fits = row.plan is not None and row.plan.num_layers == self._parts.shape.num_layers
        fits = fits and all(type(count) is int and 0 <= count <= _MOST_COUNTED for count in [*counts, *_ints(stored)])
        fits = fits and all(isinstance(number, float | None) for number in (ratio, cutoff))
        self._require(fits, "report", "counts", str(counts)[:80])
        self._require(isinstance(note, str | None), "note", "a text", str(note)[:80])
        size = next(self._parts.language_model.parameters()).element_size()
        return Report(settings.method, (row,), self._parts.shape, size, ratio, note, cutoff)

    def _layer(self, index: int, group: int, ids: Tensor, columns: dict[int, Tensor], plan: Plan) -> PrunedLayer:
        layer, device = PrunedLayer(), execution_device(self._parts.decoder_layers[index])
        keys, values = (self._tensors[f"{kind}.{index}"] for kind in ("keys", "values"))
        layer.lazy_initialization(keys.to(device), values.to(device))
        layer.keys, layer.values = keys[None].to(device), values[None].to(device)
        if columns:
            tail = int((ids != self._parts.image_token_id).flip(0).to(torch.int64).cumprod(0).sum())
            first = columns.get(0)
            dropped = 0 if first is None else len(ids) - len(first)
            places = columns.get(group, torch.arange(len(ids), device=ids.device))[None].to(device)
            shift = _packed_before(plan, index)
            layer.describe(places, len(ids), dropped, tail, has_padding=False, group=group, shift=shift)
        return layer


def _difference(found: object, wanted: object) -> str:
    """Return how two parts of identities differ: long ones from a little before the place where they do."""
    texts = str(found), str(wanted)
    pairs = enumerate(zip(*texts, strict=False))
    first = max(next((place for place, (own, other) in pairs if own != other), min(map(len, texts))) - 60, 0)
    if first and max(map(len, texts)) > _LONGEST:
        texts = f"...{texts[0][first:]}", f"...{texts[1][first:]}"
    return f"{_cut(texts[0])} instead of {_cut(texts[1])}"


def _cut(value: object) -> str:
    """Return a part of an identity as a message shows it: a file's may be anything of any length."""
    return shortened(str(value), _LONGEST)


def _ints(stored: Any) -> Iterator[int]:
    """Yield every number of a report that is no float, however deep."""
    if isinstance(stored, dict | list):
        for inner in stored.values() if isinstance(stored, dict) else stored:
            yield from _ints(inner)
    elif type(stored) is int:
        yield stored


def _packed_before(plan: Plan, layer: int) -> int:
    """Return by how much the positions of tokens that follow are packed in a layer, for what cuts up to it have
    dropped.
    """
    lost, tokens = 0, plan.entry_tokens
    for cut in plan.decoder:
        lost += tokens - cut.tokens if cut.pack_positions and cut.layer <= layer else 0
        tokens = cut.tokens
    return lost
