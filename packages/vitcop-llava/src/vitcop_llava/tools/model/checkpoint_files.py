"""What is looked at of a checkpoint's files before transformers reads them: their kinds and sizes, and its numbers.

A configuration says how many layers are built, and how large pictures and weights are made. It is read here first, so
that no number in it makes building the model, or filling in weights that are not there, take long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitcop_core.files import open_regular, read_bytes
from vitcop_core.shown import shown, told
from vitcop_llava.tools.model.processors import MAX_SIDE, ModelError

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_CONFIG = 4 * 2**20
"""Bytes of a JSON file or template of a checkpoint, the index of weights apart."""

MAX_TOKENIZER = 48 * 2**20
"""Bytes of a file of a tokenizer; those of a quarter of a million words have 35 million."""

MAX_LAYERS, MAX_EXPERTS, MAX_LABELS = 256, 1024, 100_000
MAX_VOCABULARY, MAX_WIDTH = 2**22, 2**18

_TEXTS = (".json", ".jsonl", ".jinja", ".txt", ".model")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", WEIGHTS_INDEX)
# What a number is by its name; the first that fits counts.
_LIMITS = [
    (re.compile(name), low, high)
    for name, low, high in (
        (r"(num|n)_(\w+_)?layer|(\w+_)?(layers|blocks|stages|depths?)", 0, MAX_LAYERS),
        (r"(\w+_)?experts", 0, MAX_EXPERTS),
        (r"num_labels", 0, MAX_LABELS),
        (r"vocab_size", 1, MAX_VOCABULARY),
        (r"(image|patch|frame|tile)_size|image_grid_pinpoints", 1, MAX_SIDE),
        (r"(\w+_)?(hidden|intermediate|embed|projection)_(size|dim)|head_dim|(\w+_)?heads", 1, MAX_WIDTH),
    )
]
_MAX_LIST = 4096

# What a setting of generation is by its name. All of them reach transformers' generate, which takes them as they are.
_COUNT = r"(max|min)_(new_tokens|length)|num_(beams|beam_groups|return_sequences|assistant_tokens)|top_k"
_FLAG = r"output_\w+|return_dict_in_generate|use_cache|do_sample|renormalize_logits|remove_invalid_values|low_memory"
_NUMBER = r"temperature|(repetition|length|diversity)_penalty|(top|min|typical)_[ph]|\w+_cutoff|guidance_scale|max_time"
_GENERATION: list[tuple[re.Pattern[str], str, Callable[[Any], bool]]] = [
    (re.compile(_COUNT), "an integer", lambda value: type(value) is int and abs(value) < 2**31),
    (re.compile(_FLAG), "True or False", lambda value: type(value) is bool),
    (re.compile(_NUMBER), "a number", lambda value: type(value) in (int, float) and abs(value) < 1e300),
    (
        re.compile(r"\w+_token_id|(begin_)?suppress_tokens"),
        "token ids",
        lambda value: all(
            type(each) is int and abs(each) < 2**31 for each in (value if type(value) is list else [value])
        ),
    ),
]


def check_files(folder: Path) -> None:
    """Check that what transformers may read of a folder are regular files of bounded size.

    Raises:
        ModelError: One is not; the message names it.
    """
    for path in sorted(folder.iterdir()):
        is_text = path.suffix in _TEXTS
        if not (is_text or path.suffix == ".safetensors") or not path.exists():  # what a link does not lead to
            continue
        try:
            with open_regular(path) as stream:
                size = stream.seek(0, 2)
        except OSError as error:
            raise ModelError(
                f"model must be made of files that can be read, got {path}: {error.strerror or error}"
            ) from error
        limit = MAX_TOKENIZER if path.name in _TOKENIZERS else MAX_CONFIG
        if is_text and size > limit:
            raise ModelError(f"model must have at most {limit // 2**20} MiB in {path.name}, got {size:,} bytes")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the numbers of a folder's ``config.json``.

    Raises:
        ModelError: There is none, or none that could be a model's.
    """
    path = folder / "config.json"
    try:
        config = json.loads(read_bytes(path, MAX_CONFIG))
    except OSError as error:
        raise ModelError(
            f"model must be made of files that can be read, got {path}: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"model must have a configuration that can be used, got that of {folder}: {told(error)}"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(
            f"model {folder} must have a configuration that is a JSON object, got a {type(config).__name__}"
        )
    return config


def check_config(name: str, config: dict[str, Any]) -> None:
    """Check the numbers that decide how much is built and computed, however deep they are.

    Raises:
        ModelError: One is outside of what any model has.
    """
    for key, value in _numbers("", config):
        for pattern, low, high in _LIMITS:
            if pattern.fullmatch(key):
                if not low <= value <= high:
                    got = str(value) if abs(value) < 1e18 else "a longer number"
                    raise ModelError(
                        f"model {name} must have a configuration with {key} from {low} to {high}, got {got}"
                    )
                break


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for inner, found in value.items():
            yield from _numbers(str(inner), found)
    elif isinstance(value, list):
        if len(value) > _MAX_LIST:
            raise ModelError(
                f"model must have at most {_MAX_LIST} entries in {key} of its configuration, got {len(value)}"
            )
        for found in value:
            yield from _numbers(key, found)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def check_generation(name: str, settings: Mapping[str, Any]) -> None:
    """Check that settings of generation are of their kinds; what is None is not set.

    Raises:
        ModelError: One is not.
    """
    for key, value in settings.items():
        for pattern, expected, fits in _GENERATION:
            if value is not None and pattern.fullmatch(key) and not fits(value):
                raise ModelError(
                    f"model {name} must have a generation configuration whose {key} is {expected}, got {shown(value)}"
                )


def find_shards(folder: Path) -> list[str]:
    """Return the names of the weights that an index lists.

    Raises:
        ModelError: It is no index, or lists files elsewhere.
    """
    try:
        names = set(json.loads(read_bytes(folder / WEIGHTS_INDEX, MAX_TOKENIZER))["weight_map"].values())
        if all(isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in names):
            return sorted(names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ModelError(
        f"model must have an index that maps weights to safetensors files of its folder, got {folder / WEIGHTS_INDEX}"
    )


def check_weights(folder: Path, numbers: int, is_quantized: bool) -> None:
    """Check that a folder's weights can be as many as the configuration asks for.

    What is not there transformers makes up, which takes the memory that the configuration says, and is then refused.

    Args:
        folder: Of the checkpoint.
        numbers: Parameters of the model.
        is_quantized: Whether a byte may hold several.

    Raises:
        ModelError: They cannot.
    """
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else find_shards(folder)
    size = sum((folder / name).stat().st_size for name in names)
    if numbers > size * (8 if is_quantized else 1):
        raise ModelError(
            f"model {folder} must have weights for the {numbers:,} numbers that config.json asks for, got {size:,} "
            "bytes"
        )
